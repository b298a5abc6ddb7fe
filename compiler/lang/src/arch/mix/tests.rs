//! Mixtures expanded: stacks, classes, what is refused.

use crate::arch::testing::{codes, model};
use crate::arch::{Model, Numbers};
use crate::diagnostic::Code;
use crate::graph::verify::verify;

const LIN: &str = "lin(n: int)(x) { weight = param[n, width(x)] return einsum('...i, oi -> ...o', x, weight) }\n\
                   biased(n: int)(x) { weight = param[n, width(x)] bias = param[n] return einsum('ni, oi -> no', x, weight) + bias }\n\
                   two(n: int)(x) { up = biased(n) down = lin(width(x)) return down(sigmoid(up(x))) }\n\
                   keep(x) { k = split(x, 2) return merge(attend(k, cache(k), cache(k), k_pos <= q_pos)) }\n";

/// Around `x [tokens, 8]`, and of 4 scores the 2 that are chosen.
fn wiring(body: &str) -> String {
    format!("{LIN}model(x: f32[tokens, 8]) {{ router = lin(4) r = router(x) chosen = top_k(r, 2) {body} }}")
}

fn expanded(body: &str) -> (Model, String) {
    let made = model(&wiring(body));
    verify(&made.program).unwrap_or_else(|e| panic!("{e}"));
    let text = made.program.to_string();
    (made, text)
}

#[test]
fn equal_experts_are_expanded_once() {
    let (made, text) =
        expanded("experts = [two(6) for e in 0..4] return {y: mix(experts, chosen, take(r, chosen))(x)}");
    assert_eq!(made.arch.outputs[0].1, "f32[tokens, 8]");
    for part in ["experts.{0..4}.up.weight", "f32[tokens, 2, 6, 8]", "f32[tokens, 2, 6]", "\"tao,ta->to\""] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert_eq!(text.matches("contract").count(), 4, "router, up, down and the sum\n{text}");
    let paths: Vec<&str> = made.arch.parameters.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(paths.len(), 1 + 4 * 3);
    assert_eq!(paths[..3], ["router.weight", "experts.0.up.weight", "experts.1.up.weight"]);
    assert_eq!(made.arch.parameters[1].stack.as_deref(), Some("experts.{0..4}.up.weight"));
    let modules: Vec<&str> = made.arch.root.children.iter().map(|n| n.path.as_str()).collect();
    assert_eq!(modules, ["router", "experts.{0..4}"]);
    assert_eq!(made.arch.root.children[1].children[0].path, "experts.{0..4}.up");
}

#[test]
fn an_expert_may_have_a_row_of_its_own() {
    let (made, text) =
        expanded("experts = [lin(3) for e in 0..4] return {y: mix(experts, chosen)(sigmoid(take(r, chosen)) * x)}");
    assert_eq!(made.arch.outputs[0].1, "f32[tokens, 3]");
    assert!(text.contains("f32[tokens, 2, 8]"), "{text}");
}

#[test]
fn a_list_in_an_expert_is_expanded_in_place() {
    let (made, text) = expanded(
        "deep(x) { inner = [lin(8) for i in 0..2] return inner(x) }\n experts = [deep for e in 0..4] return {y: mix(experts, chosen)(x)}",
    );
    assert_eq!(made.program.graphs.len(), 1);
    assert!(text.contains("experts.{0..4}.inner.1.weight"), "{text}");
}

#[test]
fn what_experts_share_is_no_stack() {
    let (made, _) = expanded(
        "shared = lin(8) e(x) { own = lin(8) return own(shared(x)) }\n experts = [e for i in 0..4] return {y: mix(experts, chosen)(x)}",
    );
    let paths: Vec<&str> = made.arch.parameters.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(paths[..3], ["router.weight", "shared.weight", "experts.0.own.weight"]);
}

#[test]
fn several_classes_of_experts() {
    let experts = "experts = [if e < 2 then two(6) else if e < 3 then two(5) else identity for e in 0..4]";
    let (made, text) = expanded(&format!("{experts} return {{y: mix(experts, chosen, 0.5)(x)}}"));
    assert!(text.contains("experts.{0..2}.up.weight"), "{text}");
    assert!(text.contains("\"experts.2.up.weight\""), "one of a kind has its own parameters\n{text}");
    assert_eq!(made.arch.parameters.len(), 1 + 3 * 3);
    assert_eq!(made.arch.outputs[0].1, "f32[tokens, 8]");
}

#[test]
fn mixtures_in_layers_are_one_body() {
    let made = model(&format!(
        "{LIN}layer(x) {{ router = lin(4) experts = [two(6) for e in 0..4] chosen = top_k(router(x), 2) return x + mix(experts, chosen)(x) }}\n\
         model(x: f32[tokens, 8]) {{ layers = [layer for i in 0..3] return {{y: layers(x)}} }}"
    ));
    verify(&made.program).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(made.program.graphs.len(), 2);
    assert!(made.program.to_string().contains("\"experts.{0..4}.up.weight\""), "{}", made.program);
    let numbers = Numbers::of(&made.arch, &made.program);
    let expert = 6 * 8 + 6 + 8 * 6;
    assert_eq!((numbers.parameters, numbers.idle, numbers.lookups), (3 * (32 + 4 * expert), 3 * 2 * expert, 0));
}

#[test]
fn misuse_is_said() {
    let code = |body: &str| codes(&wiring(&format!("experts = [lin(8) for e in 0..4] {body}")));
    let of = |call: &str| code(&format!("return {{y: {call}}}"));
    assert_eq!(of("mix(experts, chosen)(x)"), []);
    for (call, expected) in [
        ("mix(lin, chosen)(x)", Code::WrongType),
        ("mix([], chosen)(x)", Code::WrongType),
        ("mix([lin(8), lin(8)], chosen)(x)", Code::WrongType),
        ("mix([3, 4], chosen)(x)", Code::WrongType),
        ("mix(experts, r)(x)", Code::AxisMismatch),
        ("mix(experts, chosen, r)(x)", Code::AxisMismatch),
        ("mix(experts, chosen, 'a')(x)", Code::WrongType),
        ("mix(experts, chosen)(split(x, 4))", Code::AxisMismatch),
        ("mix(experts, chosen)(x, x)", Code::WrongType),
        ("mix(experts)(x)", Code::MissingOption),
        ("mix(experts, chosen)", Code::WrongType),
    ] {
        assert_eq!(of(call), [expected], "{call}");
    }
    for (experts, expected) in [
        ("[keep for e in 0..4]", vec![Code::Misplaced; 2]),
        ("[lin(if e < 2 then 8 else 4) for e in 0..4]", vec![Code::AxisMismatch]),
        ("[lin(e + 1) for e in 0..70]", vec![Code::TooLarge]),
    ] {
        assert_eq!(code(&format!("es = {experts} return {{y: mix(es, chosen)(x)}}")), expected, "{experts}");
    }
    for (body, expected) in [
        ("t = param[4, 8] return gather(t, top_k(x, 1))", Code::Misplaced),
        ("w = param[4, 8] return einsum('ni, oi -> o', x, w)", Code::Misplaced),
        ("w = param[8] return merge(x * w)", Code::AxisMismatch),
        ("w = param[8] return split(x * w, 2)", Code::AxisMismatch),
        ("inner = [lin(8) for i in 0..2] return mix(inner, top_k(x, 1))(x)", Code::Misplaced),
    ] {
        assert_eq!(
            code(&format!("e(x) {{ {body} }}\n es = [e for i in 0..4] return {{y: mix(es, chosen)(x)}}")),
            [expected],
            "{body}"
        );
    }
}
