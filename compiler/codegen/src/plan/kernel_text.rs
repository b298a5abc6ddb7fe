//! Kernel specifications as text, by which they are compared.
//!
//! Every field is named here: one more in a specification does not compile before it is said whether it tells kernels apart.

use xfc_lang::graph::Graph;

use super::kernel::{AttentionSpec, KernelSpec, LinearSpec, RowsSpec, ScanSpec};

impl KernelSpec {
    /// The specification as text: equal texts are equal kernels.
    pub fn text(&self) -> String {
        match self {
            KernelSpec::Linear(spec) => linear(spec),
            KernelSpec::Attention(spec) => attention(spec),
            KernelSpec::Combine(spec) => format!("{spec:?}"),
            KernelSpec::Scan(spec) => scan(spec),
            KernelSpec::Rows(spec) => rows(spec),
        }
    }
}

fn linear(spec: &LinearSpec) -> String {
    let LinearSpec { space, times, heads, experts, inputs, outputs, parts, operand, widened, epilogue, extras, result } =
        spec;
    let form = if *widened { " widened" } else { "" };
    format!(
        "linear {space:?} times {times} heads {heads} experts {experts:?} {outputs}x{inputs} parts {parts} of {operand}{form} -> {result} extras {extras:?}\n{}",
        body_text(epilogue)
    )
}

fn attention(spec: &AttentionSpec) -> String {
    let AttentionSpec {
        axis,
        heads,
        kv_heads,
        key_dim,
        value_dim,
        key_layout,
        value_layout,
        value_in_key,
        when,
        scale,
        mask,
        score,
        sink,
        tables,
        softmax,
        reach,
        query,
        kept,
        value_kept,
        result,
        group,
        page_tokens,
        division,
    } = spec;
    format!(
        "attention{} axis {axis} heads {heads}/{kv_heads} dims {key_dim}/{value_dim} keys {key_layout:?} values {value_layout:?} {value_in_key:?} \
         when {when:?} scale {scale} {reach:?} {query} {kept}/{value_kept} -> {result} group {group} pages of {page_tokens} {division:?} \
         tables {tables:?}\n{}{}{}",
        if *softmax { "" } else { " without softmax" },
        body_text(mask),
        body_text(score),
        sink.as_ref().map(body_text).unwrap_or_default()
    )
}

fn scan(spec: &ScanSpec) -> String {
    let ScanSpec { axis, parts, states, step, params, outputs, group, page_bytes } = spec;
    format!(
        "scan axis {axis} parts {parts} states {states} group {group} pages {page_bytes:?} {params:?} {outputs:?}\n{}",
        body_text(step)
    )
}

fn rows(spec: &RowsSpec) -> String {
    // A name for people.
    let RowsSpec { label: _, space, body, params, sinks, widened } = spec;
    let form = if *widened > 0 { format!(" widened {widened}") } else { String::new() };
    format!("rows {space:?} {params:?} {sinks:?}{form}\n{}", body_text(body))
}

/// Text of a graph without its name, which says where it came from and not what it does.
fn body_text(graph: &Graph) -> String {
    let mut graph = graph.clone();
    graph.name = "body".to_owned();
    let axes: Vec<String> = (0..8).map(|a| format!("axis{a}")).collect();
    graph.text(&axes)
}
