//! docs/tutorial.md: its YAML is one card, and its commands print what it says, on a checkpoint and a dump that Hugging Face transformers wrote.

use std::fs;

use xfc_tests::command::Shell;
use xfc_tests::{Result, repository};

/// The fenced blocks in order, each with its kind.
fn blocks(text: &str) -> Vec<(&str, &str)> {
    let parts = text.split("```").skip(1).step_by(2);
    parts.filter_map(|block| block.split_once('\n')).collect()
}

/// Whether a line is as written, where `…` stands for anything.
fn line_fits(written: &str, line: &str) -> bool {
    let mut parts = written.split('…').map(str::trim);
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.trim().strip_prefix(first) else { return false };
    let mut last = first;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        last = part;
    }
    // Behind a `…` at the end anything may follow.
    rest.is_empty() || (last.is_empty() && written.contains('…'))
}

/// Whether lines are as written, where a line `...` stands for any number of lines.
fn fits(written: &[&str], lines: &[&str]) -> bool {
    match written.split_first() {
        None => lines.is_empty(),
        Some((&"...", rest)) => (0..=lines.len()).any(|skip| fits(rest, &lines[skip..])),
        Some((first, rest)) => lines.first().is_some_and(|line| line_fits(first, line)) && fits(rest, &lines[1..]),
    }
}

/// The arguments of a command line, whose quotes hold spaces.
fn arguments(command: &str) -> Vec<&str> {
    let quoted = command.split('\'').enumerate();
    quoted
        .flat_map(|(i, part)| if i % 2 == 0 { part.split_whitespace().collect::<Vec<_>>() } else { vec![part] })
        .collect()
}

#[test]
fn what_the_tutorial_says_is_what_happens() -> Result<()> {
    let text = fs::read_to_string(repository().join("docs/tutorial.md"))?;
    let shell = Shell::new()?;
    let data = repository().join("tests/reference/tutorial");
    fs::create_dir(shell.folder().join("tiny-falcon"))?;
    for (from, to) in [
        ("config.json", "tiny-falcon/config.json"),
        ("model.safetensors", "tiny-falcon/model.safetensors"),
        ("dump.safetensors", "dump.safetensors"),
    ] {
        fs::copy(data.join(from), shell.folder().join(to))?;
    }
    let (mut card, mut n_commands) = (String::new(), 0);
    for (kind, block) in blocks(&text) {
        if kind == "yaml" {
            card.push_str(block);
            fs::write(shell.folder().join("falcon.yaml"), &card)?;
        }
        if kind != "console" {
            continue;
        }
        for command in block.split("$ ").skip(1) {
            let (line, written) = command.split_once('\n').ok_or("a command without a result")?;
            let given = arguments(line);
            let (program, given) = given.split_first().ok_or("an empty command")?;
            let ran = shell.run(program, given)?;
            let printed = format!("{}{}", ran.stdout, ran.stderr);
            let lines: Vec<&str> = printed.lines().filter(|l| !l.is_empty()).collect();
            let written: Vec<&str> = written.lines().filter(|l| !l.is_empty()).collect();
            assert!(fits(&written, &lines), "{line}\nprints\n{printed}\nand not\n{}", written.join("\n"));
            n_commands += 1;
        }
    }
    assert_eq!((n_commands, card.lines().count()), (8, 46));
    Ok(())
}
