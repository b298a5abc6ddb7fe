//! Nothing half-written: a disk that is full, several processes on one cache, an interrupt at any moment.

#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use xfc_tests::Result;
use xfc_tests::command::{Shell, in_folder, path};

const RUN: [&str; 8] = ["run", "llama", "--tiny", "--tokens", "1,2,3", "-n", "3", "--json"];

/// The files of a folder, sorted.
fn files(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// A command under way in the folder of a shell.
fn start(shell: &Shell, arguments: &[&str]) -> Result<Child> {
    let mut command = Command::new(path("xfc")?);
    in_folder(command.args(arguments), shell.folder());
    Ok(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// Runs `xfc` with room for so many KiB in any one file.
fn with_room(shell: &Shell, kib: u32, arguments: &str) -> Result<(Option<i32>, String)> {
    // The signal that would end the process is ignored, so that the write fails as on a full disk.
    let script = format!("trap '' XFSZ; ulimit -f {kib}; exec {} {arguments}", path("xfc")?.display());
    let mut command = Command::new("bash");
    let output = in_folder(command.args(["-c", &script]), shell.folder()).output()?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
fn a_full_disk_keeps_what_was_there() -> Result<()> {
    let shell = Shell::new()?;
    fs::write(shell.folder().join("a.xfm"), "what was there")?;
    let (code, said) = with_room(&shell, 8, "compile llama --tiny -o a.xfm")?;
    assert!(code == Some(1) && said.contains("a.xfm: cannot write"), "{code:?}: {said}");
    assert_eq!(fs::read(shell.folder().join("a.xfm"))?, b"what was there");
    assert_eq!(files(shell.folder())?, ["a.xfm"]);

    // What cannot be kept runs as well.
    let (code, said) = with_room(&shell, 8, &RUN.join(" "))?;
    assert!(code == Some(0) && said.contains("is not kept") && said.contains("artifacts/"), "{code:?}: {said}");
    let cached = files(&shell.folder().join(".cache/artifacts"))?;
    assert!(cached.iter().all(|name| name.ends_with(".lock")), "{cached:?}");
    shell.run("xfc", &RUN)?.success()?;

    if Path::new("/dev/full").exists() {
        shell
            .run("xfc", &["compile", "llama", "--tiny", "-o", "/dev/full"])?
            .failure(1, &["/dev/full: cannot write"])?;
        let script = format!("{} check llama > /dev/full", path("xfc")?.display());
        let output = Command::new("bash").args(["-c", &script]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("standard output: cannot write"), "{said}");
    }
    Ok(())
}

#[test]
fn several_processes_share_a_cache() -> Result<()> {
    let shell = Shell::new()?;
    let started = (0..3).map(|_| start(&shell, &RUN)).collect::<Result<Vec<_>>>()?;
    let mut ids = Vec::new();
    let mut compiled = 0;
    for child in started {
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        compiled += usize::from(said.starts_with("compiled "));
        ids.push(serde_json::from_slice::<serde_json::Value>(&output.stdout)?["ids"].clone());
    }
    assert_eq!(compiled, 1);
    assert!(ids.iter().all(|one| *one == ids[0]), "{ids:?}");
    let cached = files(&shell.folder().join(".cache/artifacts"))?;
    assert_eq!(cached.iter().filter(|name| name.ends_with(".xfm")).count(), 1, "{cached:?}");
    assert!(!cached.iter().any(|name| name.ends_with(".tmp")), "{cached:?}");
    Ok(())
}

#[test]
fn an_interrupt_leaves_nothing_or_all() -> Result<()> {
    let shell = Shell::new()?;
    let output = shell.folder().join("a.xfm");
    for (n, wait) in [30, 200, 700, 1500].into_iter().enumerate() {
        let arguments = if n % 2 == 0 { &["compile", "llama", "--tiny", "-o", "a.xfm"][..] } else { &RUN[..] };
        let mut child = start(&shell, arguments)?;
        std::thread::sleep(Duration::from_millis(wait));
        Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
        child.wait()?;
        if output.exists() {
            shell.run("xfc", &["inspect", "a.xfm", "--emit", "plan"])?.success()?;
        }
    }
    // Whatever it met, the next run goes through.
    shell.run("xfc", &RUN)?.success()?;
    shell.run("xfc", &["compile", "llama", "--tiny", "-o", "a.xfm"])?.success()?;
    shell.run("xfrun", &["run", "a.xfm", "--checkpoint", "random", "--tokens", "1", "-n", "1"])?.success()?;
    Ok(())
}

#[test]
fn a_damaged_entry_of_the_cache_is_made_again() -> Result<()> {
    let shell = Shell::new()?;
    let first = shell.run("xfc", &RUN)?.success()?;
    let folder = shell.folder().join(".cache/artifacts");
    let entry = files(&folder)?.into_iter().find(|name| name.ends_with(".xfm")).ok_or("nothing is cached")?;
    let bytes = fs::read(folder.join(&entry))?;
    fs::write(folder.join(&entry), &bytes[..bytes.len() / 2])?;
    let again = shell.run("xfc", &RUN)?.success()?;
    let ids = |text: &str| serde_json::from_str::<serde_json::Value>(text).map(|json| json["ids"].clone());
    assert_eq!(ids(&first)?, ids(&again)?);
    assert_eq!(fs::read(folder.join(&entry))?.len(), bytes.len());
    Ok(())
}
