//! What people look at: drawings, pages in a real browser, comparisons, the derivation of caches, explanations.
//!
//! Pages are opened in headless Chromium when it is on PATH; without it that part says that it was skipped, and fails in continuous integration.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use xfc_codegen::plan::caches as plan_caches;
use xfc_codegen::target;
use xfc_lang::graph::DType;
use xfc_lang::{ElaborateOptions, Library, elaborate, load_card, passes, view};
use xfc_runtime::artifact::manifest;
use xfc_tests::Result;
use xfc_tests::command::Shell;

/// The browser, if there is one.
pub(crate) fn browser() -> Result<Option<PathBuf>> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = std::env::split_paths(&folders).flat_map(|f| names.map(|n| f.join(n))).find(|path| path.is_file());
    if found.is_none() {
        if std::env::var_os("CI").is_some_and(|v| !v.is_empty()) {
            return Err("no chromium on PATH: tools/setup.sh installs it".into());
        }
        skipped()?;
    }
    Ok(found)
}

/// Says so past the capture of a test's output.
fn skipped() -> Result<()> {
    Ok(writeln!(std::io::stderr(), "SKIPPED: pages were not opened, because there is no chromium on PATH")?)
}

/// The document of a page after its script ran.
fn opened(browser: &Path, page: &Path, fragment: &str) -> Result<String> {
    let dom = dom(browser, page, fragment)?;
    if !dom.contains("data-ready=\"yes\"") {
        return Err(format!("{}: the script did not run to its end", page.display()).into());
    }
    Ok(dom)
}

/// The document of a page as a browser has it.
pub(crate) fn dom(browser: &Path, page: &Path, fragment: &str) -> Result<String> {
    let profile = tempfile::tempdir()?;
    let page = format!("file://{}{fragment}", page.display());
    let flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1400,1000",
        "--virtual-time-budget=4000",
        "--dump-dom",
    ];
    let ran = Command::new(browser)
        .args(flags)
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(&page)
        .output()?;
    let dom = String::from_utf8(ran.stdout)?;
    if !ran.status.success() {
        return Err(format!("{page}: does not open\n{}", String::from_utf8_lossy(&ran.stderr)).into());
    }
    Ok(dom)
}

/// The numbers in the ways of all wires.
fn wires(text: &str) -> Vec<f64> {
    let paths = text.split("class=\"path\" d=\"").skip(1).filter_map(|rest| rest.split('"').next());
    paths
        .flat_map(|d| d.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-')).filter_map(|n| n.parse().ok()))
        .collect()
}

#[test]
fn pages_open_in_a_browser_and_place_things_as_the_drawing_does() -> Result<()> {
    let Some(browser) = browser()? else { return Ok(()) };
    let shell = Shell::new()?;
    for (model, stage) in
        [("llama", "arch"), ("gpt2", "graph"), ("bert", "fused"), ("mistral", "arch"), ("deepseek_v3", "fused")]
    {
        shell.run("xfc", &["inspect", model, "--format", "html", "--emit", stage, "-o", "page.html"])?.success()?;
        let path = shell.folder().join("page.html");
        let written = fs::read_to_string(&path)?;
        let dom = opened(&browser, &path, "")?;
        let count = |text: &str, what: &str| text.matches(what).count();
        let nodes = count(&written, "class=\"node ");
        let frames = count(&written, "class=\"frame ");
        assert!(nodes > 10 && frames > 3, "{model} {stage}: {nodes} nodes, {frames} frames");
        assert_eq!(count(&dom, "class=\"node "), nodes, "{model} {stage}");
        assert!(dom.contains(&format!("data-drawn=\"{frames} {nodes}\"")), "{model} {stage}");
        // The page has made all coordinates again.
        let (ours, theirs) = (wires(&written), wires(&dom));
        assert_eq!(ours.len(), theirs.len(), "{model} {stage}");
        for (a, b) in ours.iter().zip(&theirs) {
            assert!((a - b).abs() < 0.25, "{model} {stage}: {a} in the drawing, {b} in the page");
        }
    }
    // A part that lies in closed modules is opened, selected and told about.
    shell.run("xfc", &["inspect", "llama", "--format", "html", "-o", "page.html"])?.success()?;
    let dom = opened(&browser, &shell.folder().join("page.html"), "#layers.0.self_attn.rotate")?;
    let details = dom.split("<aside").nth(1).and_then(|t| t.split("</aside>").next()).unwrap_or_default();
    assert!(details.contains("layers.0.self_attn.rotate") && !details.contains("hidden"), "{details}");
    Ok(())
}

#[test]
fn names_of_a_card_cannot_run_in_a_page() -> Result<()> {
    let shell = Shell::new()?;
    let card = "xfc: 1\nname: '</script><script>document.title=1</script><img src=x onerror=document.title=2>'\nsizes: {n: 8}\nwiring: |\n  \
                model(x: f32[tokens, 8]) {\n    first = linear(8)\n    return {y: first(x) * 2}\n  }\n";
    fs::write(shell.folder().join("evil.yaml"), card)?;
    shell.run("xfc", &["inspect", "evil.yaml", "--format", "html", "-o", "page.html"])?.success()?;
    shell.run("xfc", &["inspect", "evil.yaml", "--format", "svg", "-o", "page.svg"])?.success()?;
    for file in ["page.html", "page.svg"] {
        let text = fs::read_to_string(shell.folder().join(file))?;
        assert!(!text.contains("<img") && !text.contains("<script>document"), "{file}");
    }
    let Some(browser) = browser()? else { return Ok(()) };
    let dom = opened(&browser, &shell.folder().join("page.html"), "")?;
    assert!(!dom.contains("<img") && dom.contains("<title>&lt;/script&gt;"), "the page's title was changed");
    Ok(())
}

#[test]
fn drawings_are_written_whole_or_refused() -> Result<()> {
    let shell = Shell::new()?;
    let svg = shell.run("xfc", &["inspect", "bert", "--format", "svg", "--emit", "fused"])?.success()?;
    assert!(svg.starts_with("<svg xmlns") && svg.trim_end().ends_with("</svg>"));
    let layer =
        shell.run("xfc", &["inspect", "llama", "--format", "svg", "--emit", "graph", "--layer", "3"])?.success()?;
    assert!(layer.contains("q_proj"));
    // Weights in the blocks that they are held in.
    let held = ["inspect", "qwen3", "--tiny", "--quant", "int4", "--format", "svg", "--emit", "fused"];
    let held = shell.run("xfc", &held)?.success()?;
    assert!(held.contains("int4g32["), "{:?}", words(&held));
    for (arguments, named) in [
        (&["inspect", "llama", "--format", "svg", "--emit", "asm"][..], &["asm", "arch, graph, fused"][..]),
        (&["inspect", "llama", "--format", "html", "--layer", "99"], &["no layer 99"]),
        (&["inspect", "llama", "--diff", "graph", "gpt2"], &["names no two stages"]),
        (&["inspect", "--diff", "llama"], &["needs another"]),
        (&["inspect"], &["MODEL"]),
        (&["inspect", "llama", "--cache", "--format", "svg"], &["text or json"]),
        (&["explain", "E9999"], &["E9999"]),
        (&["doc", "rms_nrom"], &["rms_norm"]),
    ] {
        shell.run("xfc", arguments)?.failure(2, named)?;
    }
    shell.run("xfc", &["inspect", "llama", "--diff", "no_such_card"])?.failure(3, &["no_such_card"])?;
    Ok(())
}

/// What is written in a drawing, but for the places of equations.
fn words(svg: &str) -> Vec<&str> {
    svg.split("<text ").skip(1).filter_map(|t| t.split_once('>')?.1.split("</text>").next()).collect()
}

#[test]
fn the_drawing_in_the_documentation_is_of_the_model() -> Result<()> {
    let shown = fs::read_to_string(xfc_tests::repository().join("docs/llama.svg"))?;
    let now = Shell::new()?.run("xfc", &["inspect", "llama", "--format", "svg"])?.success()?;
    assert_eq!(words(&shown), words(&now), "run: xfc inspect llama --format svg -o docs/llama.svg");
    Ok(())
}

#[test]
fn layers_that_a_number_tells_apart_are_drawn_once() -> Result<()> {
    // Seven of eight layers keep a state that fades as fast as the number of the layer says.
    let svg = Shell::new()?.run("xfc", &["inspect", "minimax", "--format", "svg"])?.success()?;
    assert!(words(&svg).iter().any(|word| word.contains("× 10")), "{:?}", words(&svg));
    Ok(())
}

#[test]
fn layers_that_read_slices_of_their_own_are_drawn_once() -> Result<()> {
    // Each of 35 layers reads its part of one embedding; one in five sees everything, the first ten have sparse gates, two keep for the rest.
    let shell = Shell::new()?;
    for stage in ["arch", "fused"] {
        let svg = shell.run("xfc", &["inspect", "gemma3n", "--format", "svg", "--emit", stage])?.success()?;
        let words = words(&svg);
        let layers: Vec<&str> =
            words.iter().copied().filter(|w| w.contains(">layer<") || w.contains(">layer ·")).collect();
        assert_eq!(layers.len(), 9, "{stage}: {layers:?}");
        for told in ["0-3, 5-8<", "20-23, 25-28, 30-33<", "slices 0-9 of 35, one each", "slices 20-34 of 35, one each"]
        {
            assert!(words.iter().any(|w| w.contains(told)), "{stage}: no `{told}` in {layers:?}");
        }
    }
    // Alike one after another in a pattern that repeats.
    let svg = shell.run("xfc", &["inspect", "gemma3", "--format", "svg"])?.success()?;
    let words = words(&svg);
    assert!(words.iter().any(|w| w.contains("0-4, 6-10, .. 18-22<") && w.contains("× 5")), "{words:?}");
    Ok(())
}

#[test]
fn models_and_stages_are_compared() -> Result<()> {
    let shell = Shell::new()?;
    let text = shell.run("xfc", &["inspect", "--diff", "llama", "mistral"])?.success()?;
    for expected in ["--- llama", "+++ mistral", "vocab_size: 128256 -> 32000", "q_pos - k_pos < 4096", "layers 0-31"] {
        assert!(text.contains(expected), "no `{expected}` in:\n{text}");
    }
    // The mask is told where it is used, and rotary positions among the sizes.
    let count = |what: &str| text.lines().filter(|line| line.contains(what)).count();
    assert_eq!((count("q_pos - k_pos"), count("rope_theta")), (1, 1), "{text}");
    let same = shell.run("xfc", &["inspect", "llama", "--diff", "llama"])?.success()?;
    assert!(same.contains("no difference"), "{same}");
    let set = shell.run("xfc", &["inspect", "llama", "--set", "hidden_act=gelu", "--diff", "llama"])?.success()?;
    assert!(set.contains("hidden_act: gelu -> silu") && set.contains("sigmoid"), "{set}");
    let json = shell.run("xfc", &["inspect", "llama", "--diff", "graph", "fused", "--format", "json"])?.success()?;
    let json: Value = serde_json::from_str(&json)?;
    assert!(
        json["lines"].as_array().is_some_and(|l| l
            .iter()
            .any(|l| l["text"].as_str().is_some_and(|t| t.contains("q_proj + k_proj + v_proj"))))
    );
    let html = shell.run("xfc", &["inspect", "--diff", "llama", "mistral", "--format", "html"])?.success()?;
    assert!(html.contains("mark-changed") && html.contains("llama and mistral"));
    Ok(())
}

#[test]
fn an_artifact_is_looked_at_through_its_description() -> Result<()> {
    let shell = Shell::new()?;
    let card = "xfc: 1\nname: Small\nsizes: {n: 8}\nwiring: |\n  model(ids: i64[tokens]) {\n    table = embedding(16, n)\n    return {y: table(ids) * 2}\n  }\n";
    fs::write(shell.folder().join("small.yaml"), card)?;
    shell.run("xfc", &["compile", "small.yaml", "-o", "small.xfm"])?.success()?;
    let same = shell.run("xfc", &["inspect", "small.xfm", "--diff", "small.yaml"])?.success()?;
    assert!(same.contains("no difference"), "{same}");
    shell.run("xfc", &["compile", "small.yaml", "--set", "n=16", "-o", "other.xfm"])?.success()?;
    shell.run("xfc", &["inspect", "other.xfm", "--format", "svg"])?.failure(2, &["other sizes", "--config"])?;
    Ok(())
}

#[test]
fn caches_are_told_as_they_are_planned() -> Result<()> {
    let cpu = target::parse("cpu:x86-64")?;
    let library = Library::embedded();
    for card in library.cards() {
        let model = load_card(card, &library).and_then(|spec| elaborate(&spec, &ElaborateOptions::default()))?;
        let told = view::caches(&view::recognised(&model.program)).ok_or("no list of layers")?;
        let mut program = model.program.clone();
        passes::precision::apply(&mut program, DType::F32, DType::F32)?;
        passes::run(&mut program, &mut passes::Options::default()).map_err(|e| format!("{card}: {e}"))?;
        let planned = plan_caches::derive(&program, &*cpu).map_err(|e| format!("{card}: {e}"))?;
        for group in &planned.groups {
            for slot in &group.slots {
                // What attention reads together is planned as one: `latent+key` is `latent` and `key` side by side.
                let names = slot.path.rsplit('.').next().unwrap_or_default();
                let module = slot.path.strip_suffix(names).unwrap_or_default();
                let facts: Option<Vec<_>> = names
                    .split('+')
                    .map(|name| told.iter().find(|f| f.paths.contains(&format!("{module}{name}"))))
                    .collect();
                let facts = facts.ok_or_else(|| format!("{card}: {} is planned and not told", slot.path))?;
                let fact = facts.first().ok_or("a slot without a name")?;
                let kept = match group.keep {
                    manifest::Keep::All => "paged",
                    manifest::Keep::Window(_) => "ring",
                    manifest::Keep::Step => "step",
                    manifest::Keep::Once => "once",
                    manifest::Keep::State => "state",
                };
                assert_eq!(fact.keep.name(), kept, "{card}: {}", slot.path);
                let token_bytes: u64 = facts.iter().map(|f| f.token_bytes).sum();
                assert_eq!(token_bytes, slot.token_bytes, "{card}: {}", slot.path);
                if let (view::Keep::Ring(told), manifest::Keep::Window(planned)) = (fact.keep, group.keep) {
                    assert_eq!(told, planned, "{card}: {}", slot.path);
                }
            }
        }
    }
    let shell = Shell::new()?;
    let text = shell.run("xfc", &["inspect", "mistral", "--cache", "-c", "32768"])?.success()?;
    for expected in [
        "layers.0-31",
        "q_pos - k_pos < 4096",
        "age <= 4095",
        "ring of 4096 tokens",
        "8,192 a token, 262,144 in 32 layers",
        "4,096 tokens kept of 32,768: 1.07 GB",
        "1 * (ceil((4096 + 512) / 16) + 1) + 1 = 290 pages of 16 tokens",
    ] {
        assert!(text.contains(expected), "no `{expected}` in:\n{text}");
    }
    let json: Value =
        serde_json::from_str(&shell.run("xfc", &["inspect", "llama", "--cache", "--format", "json"])?.success()?)?;
    assert_eq!(json["caches"][0]["kind"], "paged");
    // What is allocated is what costs say, for whatever is asked.
    for (model, arguments) in [
        ("llama", &["--dtype", "bf16", "-c", "3000", "-b", "3"][..]),
        ("mamba2", &["-b", "2"]),
        ("gemma3", &["-c", "5000"]),
        ("t5", &[]),
    ] {
        let told = |view: &[&str]| -> Result<Value> {
            let all = [&["inspect", model, "--format", "json"], arguments, view].concat();
            Ok(serde_json::from_str(&shell.run("xfc", &all)?.success()?)?)
        };
        let allocated = told(&["--cache"])?["allocated"].clone();
        let machine = xfc_tests::repository().join("examples/machines/h200.yaml");
        let cost = told(&["--cost", "--machine", machine.to_str().ok_or("the path is not text")?])?;
        assert_eq!(allocated["bytes"], cost["memory"]["cache_bytes"], "{model}");
        let groups = allocated["groups"].as_array().ok_or("no groups")?;
        let sum: u64 = groups.iter().filter_map(|g| Some(g["pages"].as_u64()? * g["page_bytes"].as_u64()?)).sum();
        assert_eq!(allocated["bytes"], sum, "{model}");
    }
    // Operands of masks are called as the card calls them.
    let text = shell.run("xfc", &["inspect", "longformer", "--cache"])?.success()?;
    assert!(text.contains("attention_mask == 1") && text.contains("or chosen == 1"), "{text}");
    for model in ["longformer", "deberta_v2", "roberta"] {
        let text = shell.run("xfc", &["inspect", model, "--cache"])?.success()?;
        assert!(!text.contains("extra") && !text.contains("captured"), "{text}");
    }
    assert_eq!(json["context_tokens"], 4096);
    Ok(())
}

#[test]
fn codes_and_names_have_pages() -> Result<()> {
    let shell = Shell::new()?;
    let page = shell.run("xfc", &["explain", "e0402"])?.success()?;
    assert!(page.starts_with("E0402: ") && page.contains("Refused:"), "{page}");
    assert!(shell.run("xfc", &["explain"])?.success()?.lines().count() > 30);
    let page = shell.run("xfc", &["doc", "gqa"])?.success()?;
    for expected in ["gqa(heads: int", "Grouped-query attention", "lib/attention.xf", "f32[tokens, 8]"] {
        assert!(page.contains(expected), "no `{expected}` in:\n{page}");
    }
    assert!(shell.run("xfc", &["doc", "attention"])?.success()?.contains("# Shapes"));
    let all = shell.run("xfc", &["doc"])?.success()?;
    for expected in ["attend", "rms_norm", "lib/norm.xf"] {
        assert!(all.contains(expected), "no `{expected}` in:\n{all}");
    }
    Ok(())
}
