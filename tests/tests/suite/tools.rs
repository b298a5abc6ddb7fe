//! Scripts of `tools/`: what they say where something that they need is not there.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use xfc_tests::ptxas::VERSION;
use xfc_tests::{Result, repository};

/// A folder of commands that end with these lines of shell.
fn commands(list: &[(&str, &str)]) -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    for (name, lines) in list {
        let path = folder.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{lines}\n"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(folder)
}

#[test]
fn missing_tools_fail_in_continuous_integration_alone() -> Result<()> {
    let folder = commands(&[("cargo", "[ \"$1\" = tree ]"), ("rustc", "echo /nowhere")])?;
    for (script, says) in [("check_dependencies.sh", "NOT CHECKED"), ("check_portable.sh", "NOT BUILT")] {
        for (ci, code) in [("true", 1), ("", 0)] {
            let mut command = Command::new(repository().join("tools").join(script));
            let ran =
                command.env("PATH", format!("{}:/usr/bin:/bin", folder.path().display())).env("CI", ci).output()?;
            let said = String::from_utf8(ran.stderr)?;
            assert_eq!(ran.status.code(), Some(code), "{script} with CI={ci}: {said}");
            assert!(said.contains(says), "{script}: {said}");
        }
    }
    Ok(())
}

#[test]
fn an_assembler_that_cannot_be_had_is_an_error() -> Result<()> {
    let script = repository().join("tools/fetch_ptxas.sh");
    assert!(fs::read_to_string(&script)?.contains(&format!("version={VERSION}\n")), "the harness wants {VERSION}");
    let (without, empty) = (commands(&[("python3", "exit 1")])?, tempfile::tempdir()?);
    let path = format!("{}:/usr/bin:/bin", without.path().display());
    for (named, says) in [("", "set XFC_PTXAS to its path"), ("/nowhere/ptxas", "names no program: /nowhere/ptxas")] {
        let mut command = Command::new(&script);
        let ran = command.env("PATH", &path).env("XDG_CACHE_HOME", empty.path()).env("XFC_PTXAS", named).output()?;
        let said = String::from_utf8(ran.stderr)?;
        assert_eq!((ran.status.code(), ran.stdout.len()), (Some(1), 0), "{said}");
        assert!(said.contains(says), "{said}");
    }
    Ok(())
}

#[test]
fn scripts_name_the_packages_that_are_not_installed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("safetensors.py"), "raise ImportError(\"No module named 'safetensors'\")")?;
    for script in ["dump_reference.py", "dump_embeddings.py", "make_encodings.py", "make_images.py", "make_packed.py"] {
        let script = repository().join("tools").join(script);
        let mut command = Command::new("python3");
        command.arg(&script).args(["checkpoint", "-o", "dump.safetensors"]).current_dir(folder.path());
        let ran = command.env("PYTHONPATH", folder.path()).env("PYTHONDONTWRITEBYTECODE", "1").output()?;
        let said = String::from_utf8(ran.stderr)?;
        assert!(said.contains("safetensors") && said.contains("pip install"), "{}: {said}", script.display());
        assert!(!said.contains("Traceback"), "{}: {said}", script.display());
    }
    Ok(())
}
