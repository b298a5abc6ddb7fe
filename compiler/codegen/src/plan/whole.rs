//! Whether a sequence must be given whole, in one step that nothing remembers: something in it needs what earlier or later steps would not have.

use xfc_lang::graph::{AxisId, Dim, Graph, Program};
use xfc_lang::ops::Core;
use xfc_lang::ops::fused::Attention;
use xfc_runtime::artifact::manifest::{CacheGroup, Keep};

use super::caches::Caches;
use super::step_caches::is_for_step;

/// Whether `program`, which keeps what `caches` says, takes whole sequences only.
pub(super) fn is_needed(program: &Program, caches: &Caches) -> bool {
    let groups = &caches.groups;
    // Keys of another axis that are there in one step only, because the axis is given once.
    let once = |axis: AxisId| {
        let kept = |g: &CacheGroup| g.axis == axis.0 && g.keep == Keep::Once;
        axis.0 != 0 && (program.extent(axis).is_some() || groups.iter().any(kept))
    };
    let reads_step = |g: &Graph| read_across(g).into_iter().any(once);
    caches.sees_ahead || program.graphs.iter().any(|g| counts_tokens(g) || reads_step(g))
}

/// Whether a graph reads the first or the last of the tokens, or knows how many there are.
fn counts_tokens(graph: &Graph) -> bool {
    let leads = |dims: &[Dim]| dims.first() == Some(&Dim::Axis(AxisId(0)));
    graph.nodes().any(|n| match graph.op(n).as_core() {
        Some(Core::First | Core::Last) => graph.operands(n).iter().any(|v| leads(&graph.ty(*v).dims)),
        Some(Core::Regroup) => leads(&graph.types(n)[0].dims),
        _ => false,
    })
}

/// Axes whose keys and values last for a step and are read by queries of another.
fn read_across(graph: &Graph) -> Vec<AxisId> {
    let mut axes = Vec::new();
    for node in graph.nodes().filter(|n| graph.op(*n).as_fused::<Attention>().is_some()) {
        let operands = graph.operands(node);
        let queries = operands.first().and_then(|q| graph.ty(*q).dims.first());
        for value in operands.iter().skip(1) {
            let Some(Core::Cache { path }) = graph.op(value.node).as_core() else { continue };
            if let Some(Dim::Visible(axis)) = graph.ty(*value).dims.first()
                && is_for_step(path)
                && queries != Some(&Dim::Axis(*axis))
            {
                axes.push(*axis);
            }
        }
    }
    axes
}
