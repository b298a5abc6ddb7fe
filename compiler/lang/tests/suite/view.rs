//! Drawings, comparisons, and what is said about caches.

use xfc_lang::graph::Program;
use xfc_lang::graph::parse::parse;
use xfc_lang::passes::{Options, pipeline, run as run_passes};
use xfc_lang::spec::parse_card;
use xfc_lang::view::{
    Frame, Keep, Mark, Scene, Subject, cache_text, caches, compare, diff_text, dot, html, recognised, scene_of,
    side_by_side, svg,
};
use xfc_lang::{ElaborateOptions, Library, Model, elaborate, load_card};

use crate::support::{DENSE, ENCODER, program};

#[test]
fn a_fused_program_is_drawn() {
    let mut program = program(DENSE);
    run_passes(&mut program, &mut Options::default()).unwrap();
    let all = dot(&program, &[0, 1]);
    let body = dot(&program, &[1]);
    assert!(all.contains(&body[body.find("subgraph").unwrap()..]));
    insta::assert_snapshot!(body);
}

/// A program at a stage.
fn at(program: &Program, stage: &str) -> Program {
    let mut program = program.clone();
    match stage {
        "arch" => recognised(&program),
        "graph" => program,
        // Also what is not compiled yet has a drawing.
        _ => {
            for pass in pipeline() {
                pass.run(&mut program);
            }
            program
        }
    }
}

fn scene(program: &Program, model: Option<&Model>, stage: &str, folded: bool) -> Scene {
    let program = at(program, stage);
    let arch = model.map(|m| &m.arch);
    scene_of(&Subject { program: &program, arch, sources: None, stage, folded }, None).unwrap()
}

fn every_card(mut check: impl FnMut(&str, &Model)) {
    let library = Library::embedded();
    for name in library.cards() {
        let model = load_card(name, &library).and_then(|spec| elaborate(&spec, &ElaborateOptions::default()));
        check(name, &model.unwrap_or_else(|e| panic!("{e}")));
    }
}

#[test]
fn every_card_is_drawn_with_all_its_parameters() {
    every_card(|name, model| {
        for stage in ["arch", "graph", "fused"] {
            let scene = scene(&model.program, Some(model), stage, true);
            assert_eq!(scene.frames[0].parameters, model.arch.parameter_count(), "{name} {stage}");
            assert!(scene.frames.len() > 2, "{name} {stage}");
            for wire in &scene.wires {
                assert!(wire.from.0 < wire.to.0, "{name} {stage}: {wire:?} goes up");
            }
            let drawn = svg(&scene);
            assert_eq!(drawn, svg(&scene));
            for kind in ["<script", "NaN", "inf"] {
                assert!(!drawn.contains(kind), "{name} {stage}: {kind}");
            }
            assert_eq!(drawn.matches("class=\"node ").count(), scene.nodes.len(), "{name} {stage}");
            let page = html(&scene);
            assert_eq!(page, html(&scene));
            assert_eq!(page.matches("<script").count(), 2, "{name} {stage}");
            assert!(
                !page.contains("http://")
                    || page.matches("http://").count() == page.matches("http://www.w3.org/").count()
            );
        }
    });
}

#[test]
fn a_layer_that_is_applied_again_is_one_with_its_weights_once() {
    let drawn = |order: &str| {
        let card = format!(
            "xfc: 1\nname: Again\nsizes: {{}}\nwiring: |\n  layer(x) {{\n    up, down = linear(8)\n    return x + down(tanh(up(x)))\n  }}\n\
             \x20 model(x: f32[tokens, 8]) {{\n    groups = [layer for i in 0..2]\n    return {{y: [groups[i] for i in {order}](x)}}\n  }}\n"
        );
        let spec = parse_card("again.yaml", &card, &Library::embedded()).unwrap_or_else(|e| panic!("{e}"));
        let model = elaborate(&spec, &ElaborateOptions::default()).unwrap_or_else(|e| panic!("{e}"));
        ["arch", "graph", "fused"].map(|stage| {
            for folded in [true, false] {
                let scene = scene(&model.program, Some(&model), stage, folded);
                assert_eq!(scene.frames[0].parameters, model.arch.parameter_count(), "{order} {stage} {folded}");
            }
            let scene = scene(&model.program, Some(&model), stage, true);
            let repeat = |f: &Frame| f.repeat.as_ref().map(|r| (r.times, r.instances, r.which.clone()));
            let repeats: Vec<_> = scene.frames.iter().filter_map(repeat).collect();
            (repeats, svg(&scene))
        })
    };
    for (repeats, svg) in drawn("[0, 0, 0, 0, 0]") {
        assert_eq!(repeats, [(5, 1, "0".to_owned())]);
        assert!(svg.contains(" × 5, shared weights<"), "{svg}");
    }
    for (repeats, svg) in drawn("[1, 0, 1, 0, 1]") {
        assert_eq!(repeats, [(5, 2, "1, 0".to_owned())]);
        assert!(svg.contains(" × 5, weights of 2<"), "{svg}");
    }
    for (repeats, svg) in drawn("0..2") {
        assert_eq!(repeats, [(2, 2, "0-1".to_owned())]);
        assert!(svg.contains(" × 2<"), "{svg}");
    }
}

/// Nodes of a drawing, absolute: left, top, right, bottom. Frames nest as groups do.
fn boxes(svg: &str) -> Vec<(f64, f64, f64, f64)> {
    let (mut at, mut found) = (vec![(0.0, 0.0)], Vec::new());
    let number = |text: &str, key: &str| -> f64 {
        text.split(&format!(" {key}=\"")).nth(1).and_then(|t| t.split('"').next()).and_then(|t| t.parse().ok()).unwrap()
    };
    let mut node = None;
    for line in svg.lines() {
        if line.starts_with("<g") {
            let moved = line.split("translate(").nth(1).and_then(|t| t.split(')').next()).unwrap_or("0 0");
            let (x, y) = moved.split_once(' ').unwrap();
            let (left, top): (f64, f64) = *at.last().unwrap();
            let here = (left + x.parse::<f64>().unwrap(), top + y.parse::<f64>().unwrap());
            node = line.contains("class=\"node ").then_some(here);
            if !line.contains("</g>") {
                at.push(here);
            }
        } else if line.starts_with("</g>") {
            at.pop();
        } else if let (Some((x, y)), true) = (node, line.starts_with("<rect class=\"face\"")) {
            found.push((x, y, x + number(line, "width"), y + number(line, "height")));
            node = None;
        }
    }
    found
}

/// Draws a program at every stage; the drawing must hold together.
pub(crate) fn draws(program: &Program) {
    for stage in ["arch", "graph", "fused"] {
        let scene = scene(program, None, stage, true);
        let drawn = svg(&scene);
        assert_eq!(drawn.matches("class=\"node ").count(), scene.nodes.len(), "{stage}\n{program}");
        assert!(!drawn.contains("NaN") && !drawn.contains("inf "), "{stage}\n{program}");
        assert!(scene.wires.iter().all(|w| w.from.0 < w.to.0), "{stage}\n{program}");
        // What lies in closed frames has no place among the rest.
        let boxes = if stage == "arch" { Vec::new() } else { boxes(&drawn) };
        for (i, a) in boxes.iter().enumerate() {
            for b in &boxes[..i] {
                let apart = a.2 <= b.0 + 0.2 || b.2 <= a.0 + 0.2 || a.3 <= b.1 + 0.2 || b.3 <= a.1 + 0.2;
                assert!(apart, "{stage}: {a:?} and {b:?}\n{program}");
            }
        }
        assert_eq!(compare(&mut scene.clone(), &mut scene.clone()), [], "{stage}\n{program}");
        assert!(html(&scene).ends_with("</html>\n"));
    }
    assert!(caches(&at(program, "arch")).is_some());
}

#[test]
fn nodes_do_not_overlap() {
    every_card(|name, model| {
        for stage in ["graph", "fused"] {
            let scene = scene(&model.program, Some(model), stage, true);
            let boxes = boxes(&svg(&scene));
            assert!(boxes.len() > 8, "{name} {stage}: {}", boxes.len());
            for (i, a) in boxes.iter().enumerate() {
                for b in &boxes[..i] {
                    let apart = a.2 <= b.0 + 0.2 || b.2 <= a.0 + 0.2 || a.3 <= b.1 + 0.2 || b.3 <= a.1 + 0.2;
                    assert!(apart, "{name} {stage}: {a:?} and {b:?}");
                }
            }
        }
    });
}

#[test]
fn names_are_text_whatever_they_are() {
    let evil = r#"</script></title><script>alert(1)</script><img src=x onerror=alert(2)>\" ' & ]]>"#;
    let text =
        DENSE.replace("mlp.gate", &format!("mlp.{evil}")).replace("program \"dense\"", &format!("program \"{evil}\""));
    assert_ne!(text, DENSE);
    let program = parse(&text).unwrap_or_else(|e| panic!("{e}"));
    for stage in ["graph", "fused"] {
        let scene = scene(&program, None, stage, true);
        for drawn in [svg(&scene), html(&scene), html(&side_by_side(scene.clone(), scene.clone(), [evil, evil]))] {
            assert!(!drawn.contains("<img") && !drawn.contains("<script>alert"), "{stage}");
            assert!(drawn.matches("</script").count() <= 2 && drawn.matches("</title><script").count() == 0, "{stage}");
        }
    }
}

#[test]
fn what_is_the_same_has_no_difference() {
    every_card(|name, model| {
        let folded = scene(&model.program, Some(model), "arch", true);
        assert_eq!(compare(&mut folded.clone(), &mut folded.clone()), [], "{name}");
    });
}

/// A card of two layers around a wiring of its layer.
fn small(layer: &str, layers: &str) -> Model {
    let card = format!(
        "xfc: 1\nname: Small\nsizes: {{}}\nwiring: |\n  norm = rms_norm(1.0e-5)\n  layer(window_size)(x) {{\n{layer}  }}\n  \
         model(ids: i64[tokens]) {{\n    table = embedding(16, 8)\n    layers = {layers}\n    return {{y: layers(table(ids))}}\n  }}\n"
    );
    let spec = xfc_lang::spec::parse_card("small.yaml", &card, &Library::embedded());
    spec.and_then(|spec| elaborate(&spec, &ElaborateOptions::default())).unwrap_or_else(|e| panic!("{e}"))
}

const BEFORE: &str =
    "    before = norm\n    attn = gqa(2, 1, 4, mask = window(window_size))\n    return x + attn(before(x))\n";
const AFTER: &str =
    "    after = norm\n    attn = gqa(2, 1, 4, mask = window(window_size))\n    return x + after(attn(x))\n";

#[test]
fn differences_are_told_by_path_and_layers_that_differ_alike_together() {
    let a = small(BEFORE, "[layer(4) for i in 0..6]");
    let b = small(BEFORE, "[layer(if i % 3 == 2 then 9 else 4) for i in 0..6]");
    let c = small(AFTER, "[layer(4) for i in 0..4]");
    let told = |a: &Model, b: &Model| {
        let (mut x, mut y) = (scene(&a.program, Some(a), "arch", false), scene(&b.program, Some(b), "arch", false));
        diff_text(["a", "b"], &[], &compare(&mut x, &mut y))
    };
    insta::assert_snapshot!("windows", told(&a, &b));
    insta::assert_snapshot!("a_norm_moved", told(&a, &c));
    // A norm that is gone, one that came, and one that stands elsewhere.
    let bare = small(
        "    attn = gqa(2, 1, 4, mask = window(window_size))\n    return x + attn(x)\n",
        "[layer(4) for i in 0..6]",
    );
    let beside = |a: &Model, b: &Model| {
        let (mut x, mut y) = (scene(&a.program, Some(a), "arch", true), scene(&b.program, Some(b), "arch", true));
        assert!(!compare(&mut x, &mut y).is_empty());
        side_by_side(x, y, ["a", "b"])
    };
    for (mark, both) in
        [(Mark::Removed, beside(&a, &bare)), (Mark::Added, beside(&bare, &a)), (Mark::Changed, beside(&a, &c))]
    {
        let marked = both.nodes.iter().any(|n| n.mark == mark) || both.frames.iter().any(|f| f.mark == mark);
        assert!(marked, "nothing is {mark:?}");
        assert!(svg(&both).contains(&format!("mark-{}", mark.name())) && html(&both).contains(mark.name()));
    }
    let both = beside(&a, &c);
    for (i, frame) in both.frames.iter().enumerate().skip(1) {
        assert!(frame.parent.is_some_and(|p| p < i));
    }
}

#[test]
fn stages_are_compared_module_by_module() {
    let a = small(BEFORE, "[layer(4) for i in 0..2]");
    let (mut x, mut y) = (scene(&a.program, Some(&a), "graph", false), scene(&a.program, Some(&a), "fused", false));
    insta::assert_snapshot!("graph_and_fused", diff_text(["graph", "fused"], &[], &compare(&mut x, &mut y)));
}

#[test]
fn caches_are_derived_from_masks() {
    let dense = caches(&at(&program(DENSE), "arch")).unwrap();
    assert!(dense.iter().all(|f| f.keep == Keep::Ring(6) && !f.latent), "{dense:?}");
    let encoder = caches(&at(&program(ENCODER), "arch")).unwrap();
    assert!(encoder.iter().all(|f| f.keep == Keep::Step && f.keep.bound(100) == 0), "{encoder:?}");
    let mixed = small(BEFORE, "[layer(if i % 3 == 2 then 9 else 4) for i in 0..6]");
    insta::assert_snapshot!("caches", cache_text(&caches(&at(&mixed.program, "arch")).unwrap(), 100));
    let latent = small(
        "    a, b = linear(8)\n    kept = cache(a(x))\n    return x + merge(attend(split(x, 2), split(b(kept), 2), split(kept, 2), causal))\n",
        "[layer(4) for i in 0..2]",
    );
    let facts = caches(&at(&latent.program, "arch")).unwrap();
    assert!(facts.iter().any(|f| f.latent && f.keep == Keep::Paged && f.layers == "layers.0-1"), "{facts:?}");
}
