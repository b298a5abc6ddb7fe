//! The rules of the tree that no compiler checks. Every test collects all breaches before it fails.

use std::collections::BTreeSet;
use std::process::Command;

use xfc_lang::spec::{Library, load_card};
use xfc_tests::source::{SourceFile, files};
use xfc_tests::{Result, repository};

/// Fails with every breach, one a line.
fn none(rule: &str, breaches: &[String]) {
    assert!(breaches.is_empty(), "{rule}:\n  {}", breaches.join("\n  "));
}

fn rust() -> Result<Vec<SourceFile>> {
    let rust = files(".", &[".rs"])?;
    assert!(rust.len() > 20, "the walk found only {} files", rust.len());
    Ok(rust)
}

#[test]
fn every_file_says_what_it_is() -> Result<()> {
    let silent = |f: &SourceFile| !f.text.starts_with("//! ");
    let breaches: Vec<_> = rust()?.into_iter().filter(silent).map(|f| f.path).collect();
    none("a .rs file opens with //!", &breaches);
    Ok(())
}

#[test]
fn long_files_explain_themselves() -> Result<()> {
    let mut breaches = Vec::new();
    for file in rust()? {
        let lines = file.text.lines().count();
        // "One file because ..." or the like: a sentence of the header about its length.
        if lines > 500 && !file.header().contains("One file because") {
            breaches.push(format!("{}: {lines} lines", file.path));
        }
    }
    none("past 500 lines a file is split, or its //! says \"One file because ...\"", &breaches);
    Ok(())
}

/// A library, and the folders and files whose code may name it.
const FENCES: [(&str, &[&str]); 6] = [
    ("melior", &["compiler/codegen/src/mlir/"]),
    ("mlir_sys", &["compiler/codegen/src/mlir/"]),
    // The file that hands MLIR over to LLVM knows both.
    ("inkwell", &["compiler/codegen/src/target/", "compiler/codegen/src/mlir/pipeline.rs"]),
    ("petgraph", &["compiler/lang/src/graph/"]),
    ("cudarc", &["runtime/src/device/cuda"]),
    ("pest", &["compiler/lang/src/spec/", "compiler/lang/src/graph/"]),
];

#[test]
fn libraries_stay_in_their_folders() -> Result<()> {
    let mut breaches = Vec::new();
    for file in rust()?.iter().filter(|f| !f.path.starts_with("tests/")) {
        for (library, folders) in FENCES {
            if folders.iter().any(|folder| file.path.starts_with(folder)) {
                continue;
            }
            let named = |line: &str| line.contains(&format!("{library}::"));
            breaches
                .extend(file.code().filter(|(_, l)| named(l)).map(|(n, l)| format!("{}:{n}: {}", file.path, l.trim())));
        }
    }
    none("a library is named only in its folder", &breaches);
    Ok(())
}

/// What may be `unsafe`: mapping files, code in memory and calling it, taking LLVM IR over, the loops that measure the machine; and tests of these and of
/// memory taken, a device that emulates one, and a driver of such devices.
const UNSAFE: [&str; 10] = [
    "runtime/src/weights/checkpoint.rs",
    "runtime/src/artifact/code.rs",
    "runtime/src/artifact/tests.rs",
    "runtime/src/device/mod.rs",
    "runtime/src/bench/limits/kernels.rs",
    "compiler/codegen/src/mlir/pipeline.rs",
    "compiler/codegen/src/mlir/tests.rs",
    "tests/src/gpu.rs",
    "tests/driver/src/lib.rs",
    "tests/tests/suite/allocations.rs",
];

#[test]
fn unsafety_is_where_it_is_said() -> Result<()> {
    // Put together here, so that this file does not contain what it looks for.
    let lint = ["unsafe", "_code"].concat();
    let allowing: Vec<String> = rust()?.into_iter().filter(|f| f.text.contains(&lint)).map(|f| f.path).collect();
    let others: Vec<String> = allowing.iter().filter(|path| !UNSAFE.contains(&path.as_str())).cloned().collect();
    none("unsafe code is in the files that ARCHITECTURE.md means", &others);
    let gone: Vec<String> =
        UNSAFE.iter().filter(|path| !allowing.iter().any(|a| a == *path)).map(|p| (*p).to_owned()).collect();
    none("the list names only files with unsafe code", &gone);
    Ok(())
}

#[test]
fn kernels_name_no_target() -> Result<()> {
    let mut breaches = Vec::new();
    for file in files("compiler/codegen/src/mlir", &[".rs"])?.iter().filter(|f| !f.path.ends_with("/tests.rs")) {
        // Operations are named as their dialect does.
        let named = |line: &str| {
            let line = line.replace("nvvm.read.ptx.", "");
            ["target::", "x86", "aarch64", "avx", "neon", "ptx"].iter().any(|word| line.contains(word))
        };
        breaches.extend(file.code().filter(|(_, l)| named(l)).map(|(n, l)| format!("{}:{n}: {}", file.path, l.trim())));
    }
    none("mlir/ names no target: a target gives it a machine and schedules", &breaches);
    Ok(())
}

/// What names families besides the cards and what they match: models of theirs, and authors.
const MORE_FAMILIES: [&str; 4] = ["gpt", "maverick", "minilm", "vaswani"];
/// Names of cards that are words of their own.
const PLAIN_WORDS: [&str; 4] = ["transformer", "codegen", "opt", "dots"];
/// Words with a family's name in them.
const OTHER_WORDS: [&str; 2] = ["coherent", "graniterapids"];
/// Shorter names are looked for as words, for they may lie in others.
const SHORT: usize = 5;

/// The names of all families, in lower case without separators: those of the files in `models/`, the `model_type`s that they match, and
/// both without their version.
fn families() -> Result<BTreeSet<String>> {
    let library = Library::embedded();
    let mut names: BTreeSet<String> = MORE_FAMILIES.map(str::to_owned).into();
    for card in library.cards() {
        names.insert(card.to_owned());
        names.extend(load_card(card, &library)?.matches.model_type.iter().map(|name| name.to_lowercase()));
    }
    let unversioned = |name: &String| {
        let end = name.find(|c: char| c.is_ascii_digit())?;
        // `x2`, `x_2`, `x_v2`.
        let name = &name[..end];
        let name = name.rsplit_once(['-', '_']).filter(|(_, last)| last.len() < 2).map_or(name, |(name, _)| name);
        Some(name.to_owned()).filter(|name| name.len() > 1)
    };
    names.extend(names.iter().filter_map(unversioned).collect::<Vec<_>>());
    let joined = names.iter().map(|name| name.replace(['-', '_'], ""));
    Ok(joined.filter(|name| !PLAIN_WORDS.contains(&name.as_str())).collect())
}

#[test]
fn the_code_knows_no_model() -> Result<()> {
    let endings = [".rs", ".pest", ".toml", ".md", ".xg", ".xf", ".yaml", ".json", ".snap"];
    let (families, mut breaches) = (families()?, Vec::new());
    for folder in ["compiler", "runtime"] {
        for file in files(folder, &endings)? {
            if let Some(family) = family(&families, &file.path) {
                breaches.push(format!("{}: the name of the file ({family})", file.path));
            }
            // Looking at a file at once is quick, and what it does not name, none of its lines does.
            if family(&families, &file.text).is_none() {
                continue;
            }
            for (n, line) in file.lines() {
                let cites = ["et al", "arXiv", "://"].iter().any(|mark| line.contains(mark));
                if let Some(family) = family(&families, line).filter(|_| !cites) {
                    breaches.push(format!("{}:{n}: {family}: {}", file.path, line.trim()));
                }
            }
        }
    }
    none("no model family is named in compiler/ and runtime/ (but where a paper is cited)", &breaches);
    Ok(())
}

/// The family that a line names.
fn family<'f>(families: &'f BTreeSet<String>, line: &str) -> Option<&'f str> {
    let lower = OTHER_WORDS.iter().fold(line.to_lowercase(), |line, word| line.replace(word, "-"));
    let joined: String = lower.chars().filter(|c| !"-_. ".contains(*c)).collect();
    // `NameOfAType` is four words.
    let mut apart = String::new();
    for c in line.chars() {
        if c.is_uppercase() && apart.ends_with(char::is_lowercase) {
            apart.push(' ');
        }
        apart.extend(c.to_lowercase());
    }
    let with_digits = lower.split(|c: char| !c.is_alphanumeric());
    let words = lower.split(|c: char| !c.is_alphabetic()).chain(apart.split(|c: char| !c.is_alphabetic()));
    let words: BTreeSet<&str> = words.chain(with_digits).collect();
    let named = |family: &&String| match family.len() {
        0..SHORT => words.contains(family.as_str()),
        _ => joined.contains(family.as_str()) && lower.contains(&family[..3]),
    };
    families.iter().find(named).map(String::as_str)
}

#[test]
fn families_are_recognised() -> Result<()> {
    let families = families()?;
    assert!(families.len() > Library::embedded().cards().count(), "{families:?}");
    for line in [
        "a LLaMA-style layer",
        "GPT-NeoX",
        "models/bert.yaml",
        "gpt_oss",
        "T5's bias",
        "let qwen2 = 1;",
        "struct QwenConfig",
        "as in Kimi",
        "deberta",
        "WhisperEncoder",
        "SigLIP",
    ] {
        assert!(family(&families, line).is_some(), "{line}");
    }
    for line in [
        "rotary(x)",
        "the vital bartender",
        "let t = 5;",
        "invite",
        "a grammar",
        "xfc-codegen",
        "coherent",
        "opt-level",
    ] {
        assert_eq!(family(&families, line), None, "{line}");
    }
    Ok(())
}

#[test]
fn nothing_is_left_for_later() -> Result<()> {
    // Put together here, so that this file does not contain what it looks for.
    let marks = [
        ["TO", "DO"],
        ["FIX", "ME"],
        ["XX", "X"],
        ["todo", "!("],
        ["unimple", "mented!"],
        ["unreach", "able!()"],
        ["#[ig", "nore"],
    ]
    .map(|halves| halves.concat());
    let mut breaches = Vec::new();
    for file in files(".", &[".rs", ".py", ".sh", ".pest", ".xf", ".yaml", "Makefile"])? {
        let left = |line: &str| marks.iter().any(|mark| line.contains(mark.as_str()));
        breaches.extend(file.lines().filter(|(_, l)| left(l)).map(|(n, l)| format!("{}:{n}: {}", file.path, l.trim())));
    }
    none("nothing is left for later, and no test is switched off", &breaches);
    Ok(())
}

#[test]
fn fused_operations_state_shapes_and_source() -> Result<()> {
    let mut breaches = Vec::new();
    let mut operations = 0;
    for file in files("compiler/lang/src/ops/fused", &[".rs"])? {
        for name in file.text.split("impl FusedOp for ").skip(1).filter_map(|rest| words(rest).next()) {
            operations += 1;
            let Some(at) = file.text.find(&format!("pub struct {name}")) else {
                breaches.push(format!("{}: {name} is not a public struct here", file.path));
                continue;
            };
            let before = file.text[..at].lines().rev();
            let doc: String = before.skip_while(|l| l.starts_with("#[")).take_while(|l| l.starts_with("///")).collect();
            for section in ["# Shapes", "# Source"] {
                if !doc.contains(section) {
                    breaches.push(format!("{}: {name} has no `{section}`", file.path));
                }
            }
        }
    }
    assert!(operations > 3, "only {operations} fused operations found");
    none("the doc comment of a fused operation has # Shapes and # Source", &breaches);
    Ok(())
}

#[test]
fn commands_in_the_documentation_exist() -> Result<()> {
    let makefile = std::fs::read_to_string(repository().join("Makefile"))?;
    let mut breaches = Vec::new();
    let mut checked = 0;
    for file in files(".", &[".md"])? {
        for (n, line) in file.lines() {
            for command in commands(line) {
                checked += 1;
                if let Err(problem) = exists(&command, &makefile) {
                    breaches.push(format!("{}:{n}: `{}`: {problem}", file.path, command.join(" ")));
                }
            }
        }
    }
    assert!(checked > 3, "only {checked} commands found");
    none("a command in the documentation exists, with its options", &breaches);
    Ok(())
}

/// The commands that a line of Markdown gives: an indented or quoted line, or a code span, that begins with one of ours.
fn commands(line: &str) -> Vec<Vec<String>> {
    let spans = line.split('`').skip(1).step_by(2);
    let indented = line.strip_prefix("    ").into_iter();
    let split = |text: &str| -> Vec<String> {
        let text = text.split(" #").next().unwrap_or_default().trim().trim_start_matches("$ ");
        text.split_whitespace().map(String::from).collect()
    };
    let ours = |command: &Vec<String>| {
        let tool = command.first().map_or("", |first| first.rsplit('/').next().unwrap_or_default());
        command.len() > 1 && (["make", "xfc", "xfrun"].contains(&tool) || tool.ends_with(".sh"))
    };
    spans.chain(indented).map(split).filter(ours).collect()
}

fn exists(command: &[String], makefile: &str) -> std::result::Result<(), String> {
    let tool = command[0].as_str();
    if tool == "make" {
        let target = &command[1];
        let known = makefile.lines().any(|line| line.split(':').next() == Some(target));
        return if known { Ok(()) } else { Err("the Makefile has no such target".into()) };
    }
    if tool.ends_with(".sh") {
        let known = repository().join(tool).is_file();
        return if known { Ok(()) } else { Err("no such script".into()) };
    }
    let name = tool.rsplit('/').next().unwrap_or_default();
    let program = xfc_tests::command::path(name).map_err(|e| e.to_string())?;
    // `xfc compile, run` names two.
    let n_listed = command[1..].iter().take_while(|word| word.ends_with(',')).count();
    let mut help = String::new();
    for subcommand in &command[1..=(n_listed + 1).min(command.len() - 1)] {
        let subcommand = subcommand.trim_end_matches(',');
        let ran = Command::new(&program).args([subcommand, "--help"]).output().map_err(|e| e.to_string())?;
        if !ran.status.success() {
            return Err(format!("{name} has no subcommand {subcommand}"));
        }
        help.push_str(&String::from_utf8_lossy(&ran.stdout));
    }
    for option in command.iter().filter(|word| word.starts_with('-')) {
        let option = option.trim_matches(|c: char| "[].,".contains(c)).split('=').next().unwrap_or_default();
        if !help
            .split(|c: char| c.is_whitespace() || ",[]".contains(c))
            .any(|word| word.split('=').next() == Some(option))
        {
            return Err(format!("{name} {} has no option {option}", command[1]));
        }
    }
    Ok(())
}

#[test]
fn links_in_the_documentation_lead_somewhere() -> Result<()> {
    let mut breaches = Vec::new();
    for file in files(".", &[".md"])? {
        let folder = repository().join(&file.path).parent().map(std::path::Path::to_path_buf).unwrap_or_default();
        for (n, line) in file.lines() {
            for link in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let path = link.split('#').next().unwrap_or_default();
                if !path.is_empty() && !path.contains("://") && !folder.join(path).exists() {
                    breaches.push(format!("{}:{n}: {link}", file.path));
                }
            }
        }
    }
    none("a link in the documentation leads to a file", &breaches);
    Ok(())
}

#[test]
fn the_readme_of_the_references_names_each() -> Result<()> {
    let folder = repository().join("tests/reference");
    let readme = std::fs::read_to_string(folder.join("README.md"))?;
    let folders = |of: &str| -> Result<BTreeSet<String>> {
        let entries = std::fs::read_dir(folder.join(of))?.collect::<std::io::Result<Vec<_>>>()?;
        let folders = entries.into_iter().filter(|entry| entry.path().is_dir());
        Ok(folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    };
    let indented = readme.lines().filter_map(|line| line.strip_prefix("    ")?.split_whitespace().next());
    let told: BTreeSet<String> = indented.filter_map(|word| word.strip_suffix('/')).map(str::to_owned).collect();
    assert_eq!(told, folders(".")?, "the list at the top");
    let table = readme.split("## The cases").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap_or_default();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    let told: BTreeSet<String> = rows.filter(|name| *name != "case").map(str::to_owned).collect();
    assert_eq!(told, folders("cases")?, "the table of cases");
    Ok(())
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

#[test]
fn every_dependency_has_its_reason() -> Result<()> {
    let [manifest, readme] = ["Cargo.toml", "README.md"].map(|file| std::fs::read_to_string(repository().join(file)));
    let (manifest, readme) = (manifest?, readme?);
    let table =
        readme.split("## What it is built on").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap_or_default();
    let reasons: Vec<&str> =
        table.lines().filter_map(|row| row.strip_prefix("| ")?.split(" | ").next()).flat_map(first_words).collect();
    let dependencies = manifest.split("[workspace.dependencies]").nth(1).and_then(|rest| rest.split("\n[").next());
    let dependencies = dependencies.unwrap_or_default().lines().filter(|line| !line.starts_with('#'));
    let names: Vec<&str> = dependencies.filter_map(|line| Some(line.split_once(" = ")?.0.trim())).collect();
    assert!(names.len() > 20, "only {names:?}");
    let ours = |name: &str| name.starts_with("xfc-");
    let silent = names.iter().filter(|name| !ours(name) && !reasons.contains(name));
    let silent: Vec<String> = silent.map(|name| (*name).to_owned()).collect();
    none("the README's table gives every dependency a reason", &silent);
    let gone = reasons.iter().filter(|name| !names.contains(name) && **name != "dependency");
    let gone: Vec<String> = gone.map(|name| (*name).to_owned()).collect();
    none("the README's table names only dependencies", &gone);
    Ok(())
}

/// The names in the first column of a row: `serde_yaml (as yaml_serde)` is one.
fn first_words(column: &str) -> impl Iterator<Item = &str> {
    column.split(", ").filter_map(|name| name.split_whitespace().next()).filter(|name| !name.starts_with('-'))
}
