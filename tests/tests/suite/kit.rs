//! The scripts that test and time a GPU (`tools/cuda`), as far as they run without one: what they say then, and their comparisons between two processors.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use xfc_tests::command::{in_folder, path};
use xfc_tests::{Result, repository};

/// Exit code and standard output.
fn ran(command: &mut Command, folder: &Path) -> Result<(Option<i32>, String)> {
    // Of a machine with GPUs, none.
    let output = in_folder(command, folder).env("CUDA_VISIBLE_DEVICES", "-1").output()?;
    let said = String::from_utf8(output.stdout)?;
    let code = output.status.code();
    if code == Some(0) { Ok((code, said)) } else { Ok((code, said + &String::from_utf8(output.stderr)?)) }
}

/// A copy of a kit of one reference case, with code for processors, which is made once.
fn kit() -> Result<tempfile::TempDir> {
    static MADE: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let made = MADE.get_or_init(|| make().map_err(|error| error.to_string())).clone()?;
    let folder = tempfile::tempdir()?;
    let mut command = Command::new("cp");
    match ran(command.arg("-R").arg(made).arg(folder.path()), folder.path())? {
        (Some(0), _) => Ok(folder),
        (code, said) => Err(format!("cp ended with {code:?}: {said}").into()),
    }
}

/// Where the kit lies that the others are copies of.
fn make() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kit-of-the-suite");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let kit = folder.join("kit");
    let xfrun = path("xfrun")?;
    path("xfc")?;
    let mut command = Command::new(repository().join("tools/cuda/kit.sh"));
    command.arg("-o").arg(&kit).arg("--bin").arg(xfrun.parent().ok_or("xfrun has no folder")?);
    command.args(["--part", "test", "--case", "llama3", "--for", "processors"]);
    match ran(&mut command, &folder)? {
        (Some(0), _) => Ok(kit),
        (code, said) => Err(format!("kit.sh ended with {code:?}: {said}").into()),
    }
}

fn script(kit: &Path, name: &str, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    ran(Command::new("python3").arg(kit.join("kit").join(name)).args(arguments), kit)
}

#[test]
fn nothing_passes_without_a_gpu() -> Result<()> {
    let folder = kit()?;
    for name in ["check", "bench"] {
        let (code, said) = script(folder.path(), &format!("{name}.py"), &[])?;
        assert_eq!((code, said.as_str()), (Some(0), "skipped: no CUDA device\n"), "{name}");
        let mut command = Command::new(repository().join("tools/cuda/cuda.sh"));
        let (code, said) = ran(command.arg(name).env("XFC_CUDA_KIT", folder.path().join("kit")), folder.path())?;
        assert_eq!((code, said.as_str()), (Some(0), "skipped: no CUDA device\n"), "{name}");
    }
    // Some ways to copy a folder lose permissions; what does not run for its age says so.
    let kit = folder.path().join("kit");
    fs::set_permissions(kit.join("xfrun"), fs::Permissions::from_mode(0o644))?;
    let (code, said) = script(folder.path(), "check.py", &[])?;
    assert_eq!((code, said.as_str()), (Some(0), "skipped: no CUDA device\n"));
    let about = fs::read_to_string(kit.join("about.json"))?;
    let glibc = about.split("\"glibc\": \"").nth(1).and_then(|rest| rest.split('"').next()).ok_or("no glibc")?;
    fs::write(kit.join("about.json"), about.replace(&format!("\"glibc\": \"{glibc}\""), "\"glibc\": \"99.1\""))?;
    let (code, said) = script(folder.path(), "check.py", &[])?;
    let why = "the kit's runtime needs glibc 99.1 or later, and this machine has ";
    assert!(code == Some(1) && said.contains(why), "{said}");
    fs::write(kit.join("about.json"), about)?;
    // A kit whose runtime does not run is no machine without a GPU.
    fs::write(folder.path().join("kit/xfrun"), "#!/bin/sh\nexit 1\n")?;
    let (code, said) = script(folder.path(), "check.py", &[])?;
    assert!(code == Some(1) && said.contains("error: `xfrun devices` ends with 1"), "{said}");
    let mut command = Command::new(repository().join("tools/cuda/cuda.sh"));
    let (code, said) = ran(command.arg("check").env("XFC_CUDA_KIT", folder.path().join("nowhere")), folder.path())?;
    assert!(code == Some(1) && said.contains("run tools/cuda/kit.sh on a machine with Rust"), "{said}");
    Ok(())
}

#[test]
fn what_departs_fails() -> Result<()> {
    let folder = kit()?;
    let arguments = ["--target", "cpu:x86-64-v3", "--against", "cpu:x86-64"];
    let (code, said) = script(folder.path(), "check.py", &arguments)?;
    assert_eq!(code, Some(0), "{said}");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 7, "{said}");
    assert!(lines[..6].iter().all(|line| line.starts_with("PASS llama3 ")), "{said}");
    assert_eq!(lines[6], "6 passed, 0 failed on cpu:x86-64-v3");

    // Other weights than those of which the outputs are known; types of few bits still agree with one another.
    let parameters = folder.path().join("kit/cases/llama3/params.json");
    let text = fs::read_to_string(&parameters)?;
    let other = text.replacen("\"seed\": 1", "\"seed\": 2", 1);
    assert_ne!(text, other, "the seed is found");
    fs::write(&parameters, other)?;
    let (code, said) = script(folder.path(), "check.py", &arguments)?;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("FAIL llama3 on cpu:x86-64-v3: ") && said.contains("greedy tokens: ["), "{said}");
    assert!(said.contains("4 passed, 2 failed on cpu:x86-64-v3"), "{said}");
    let (code, said) = script(folder.path(), "check.py", &["--target", "cuda:sm_80"])?;
    assert!(code == Some(1) && said.contains("0 passed, 6 failed on cuda:sm_80"), "{said}");
    let (code, said) = script(folder.path(), "check.py", &[&arguments[..], &["--shard", "2/2"]].concat())?;
    assert!(code == Some(1) && said.contains("there is no case in part 2 of 2"), "{said}");
    Ok(())
}

#[test]
fn a_record_says_what_was_run() -> Result<()> {
    let folder = kit()?;
    let (bench, results) = (folder.path().join("kit/bench"), folder.path().join("kit/results.md"));
    fs::create_dir(&bench)?;
    fs::copy(folder.path().join("kit/cases/llama3/bf16.xfm.gz"), bench.join("llama-8b-bf16.xfm.gz"))?;
    let small = ["--", "-p", "4", "-n", "2", "-b", "1,2", "-t", "1", "-r", "1", "--attempts", "1"];
    let arguments = ["--target", "cpu:x86-64-v3", "--only", "8B bf16, decoding", "--no-torch"];
    // Two tests have that in their name, and both have the artifact.
    let (code, said) = script(folder.path(), "bench.py", &[&arguments[..], &small].concat())?;
    assert_eq!(code, Some(0), "{said}");
    let record = fs::read_to_string(&results)?;
    for expected in [
        "Commit ",
        "`cpu:x86-64-v3`",
        "### 8B bf16, decoding\n",
        "| pp4 | 2 | 0 | ",
        "| tg2 | 1 | 0 | ",
        " % |",
        "not run: not asked for",
    ] {
        assert!(record.contains(expected), "no `{expected}` in\n{record}");
    }
    // Numbers of PyTorch from a file, whose last line is cut off.
    let lines = "{\"torch\": \"2.9\", \"gpu\": \"One\"}\n{\"name\": \"prompt of 4 eager, tokens/s\", \"value\": 0.5}\n{\"name\": \"dec";
    fs::write(folder.path().join("torch.jsonl"), lines)?;
    let from = ["--only", "decoding behind", "--torch-from", "torch.jsonl", "-o", "other.md"];
    let arguments = [&arguments[..2], &from].concat();
    let (code, said) = script(folder.path(), "bench.py", &[&arguments[..], &small].concat())?;
    assert_eq!(code, Some(0), "{said}");
    let other = fs::read_to_string(folder.path().join("other.md"))?;
    assert!(other.contains("### PyTorch 2.9\n\n- prompt of 4 eager, tokens/s: 0.5\n"), "{other}");
    let ratio = other.lines().find_map(|line| line.strip_prefix("| pp4 | 1 | ")?.split(" | ").last());
    let ratio = ratio.map(|ratio| ratio.trim_end_matches(" |").parse::<f64>()).ok_or("no row of the prompt")?;
    assert!(ratio.is_ok_and(|ratio| ratio > 0.0), "{other}");
    // What was said before the time was over stays.
    let slow = "import time\nprint('{\"name\": \"decoding\", \"value\": 7}', flush=True)\ntime.sleep(60)\n";
    fs::write(folder.path().join("kit/torch_side.py"), slow)?;
    let (code, said) = script(
        folder.path(),
        "bench.py",
        &["--target", "cpu:x86-64-v3", "--torch-only", "--timeout", "2", "-o", "torch.md"],
    )?;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("- decoding: 7.0\n- not run: not done after 2 s\n"), "{said}");
    let missing = ["--target", "cpu:x86-64-v3", "--only", "int4, decoding", "--no-torch"];
    let (code, said) = script(folder.path(), "bench.py", &missing)?;
    assert!(code == Some(1) && said.contains("FAIL 8B int4, decoding: "), "{said}");
    assert!(fs::read_to_string(&results)?.len() > record.len(), "a record is appended");
    Ok(())
}
