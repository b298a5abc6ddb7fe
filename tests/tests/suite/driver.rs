//! The commands on a CUDA driver without a GPU (`tests/driver`), as they run on a machine with one: its kernels run in the emulator.

use std::fs;

use serde_json::Value;
use xfc_emulator::{Launch, Memory, Module, launch};
use xfc_runtime::device::cuda::texts;
use xfc_tests::Result;
use xfc_tests::case::Case;
use xfc_tests::command::Shell;
use xfc_tests::compare::Precision;

use crate::commands::{outputs_match, shell};

/// A shell with the artifacts `gpu.xfm` and `cpu.xfm` of a case.
fn compiled(name: &str) -> Result<Shell> {
    compiled_in(name, "f32")
}

/// The same in a type.
fn compiled_in(name: &str, dtype: &str) -> Result<Shell> {
    let shell = shell(&Case::load(name)?)?;
    for (target, file) in [("cuda", "gpu.xfm"), ("cpu", "cpu.xfm")] {
        shell.run("xfc", &["compile", "checkpoint", "--dtype", dtype, "--target", target, "-o", file])?.success()?;
    }
    Ok(shell)
}

const RUN: [&str; 7] = ["--checkpoint", "checkpoint", "--tokens", "1,2,3", "-n", "40", "--json"];

fn json(text: &str) -> Result<Value> {
    Ok(serde_json::from_str(text)?)
}

#[test]
fn tokens_are_those_of_the_processor_and_the_host_waits_for_nothing_else() -> Result<()> {
    let shell = compiled("llama3")?;
    let log = shell.folder().join("calls");
    let log_is = ("XFC_DRIVER_LOG", log.display().to_string());
    let run = |file: &str, settings: &[(&str, String)]| -> Result<Value> {
        let arguments = [&["run", file][..], &RUN].concat();
        json(&shell.run_on_driver(settings, &arguments)?.success()?)
    };
    let first = run("gpu.xfm", &[log_is])?;
    assert_eq!(first["ids"], run("cpu.xfm", &[])?["ids"]);
    assert_eq!((&first["start"]["kernels_kept"], &first["start"]["captures"]), (&0.into(), &1.into()));

    // Between two tokens: the step's inputs and tables, its graph, the logits, and one wait for them.
    let calls = fs::read_to_string(&log)?;
    let calls: Vec<&str> = calls.lines().filter(|call| *call != "cuCtxSetCurrent").collect();
    let graphs: Vec<usize> = (0..calls.len()).filter(|&i| calls[i] == "cuGraphLaunch").collect();
    assert_eq!(graphs.len(), 40, "a step a token");
    let step = [
        "cuGraphLaunch",
        "cuMemcpyDtoHAsync_v2",
        "cuStreamSynchronize",
        "cuMemcpyHtoDAsync_v2",
        "cuMemcpyHtoDAsync_v2",
    ];
    let between: Vec<&[&str]> = graphs.windows(2).map(|pair| &calls[pair[0]..pair[1]]).collect();
    let plain = between.iter().filter(|calls| **calls == step).count();
    // The first token's step is recorded, and another one when a sequence has a second page.
    assert_eq!(plain, 37, "{between:?}");

    // The next start compiles nothing; what is damaged is made again, and for another GPU of the kind it is the same.
    let n = &first["start"]["kernels"];
    let kept = |settings: &[(&str, String)]| -> Result<Value> {
        Ok(run("gpu.xfm", settings)?["start"]["kernels_kept"].clone())
    };
    assert_eq!(kept(&[])?, *n);
    let cubins = fs::read_dir(shell.folder().join(".cache/kernels"))?.collect::<std::io::Result<Vec<_>>>()?;
    assert_eq!(cubins.len() as u64, n.as_u64().unwrap_or(0));
    for cubin in &cubins[..2] {
        let mut bytes = fs::read(cubin.path())?;
        bytes[20] ^= 1;
        fs::write(cubin.path(), bytes)?;
    }
    assert_eq!(kept(&[])?.as_u64(), n.as_u64().map(|n| n - 2));
    assert_eq!(kept(&[])?, *n);
    // A driver whose linker does not do compiles all the same, and nothing is kept of it.
    let none =
        [("XFC_DRIVER_LINKER", "0".to_owned()), ("XFC_CACHE_DIR", shell.folder().join("other").display().to_string())];
    for _ in 0..2 {
        let ran = shell.run_on_driver(&none, &[&["run", "gpu.xfm"][..], &RUN].concat())?;
        assert_eq!(json(&ran.stdout)?["start"]["kernels_kept"], 0);
        let why = "kernels were not kept for the next start: cuda: compiling kernel";
        assert!(ran.stderr.contains(why) && ran.stderr.contains("PTX JIT"), "{}", ran.stderr);
    }
    // At the end nothing is given back that something else still needs.
    assert!(!calls.iter().any(|call| call.starts_with("fault")), "{calls:?}");
    Ok(())
}

/// Code for one GPU alone, whose target some linkers find by themselves and refuse to be told.
#[test]
fn code_of_one_gpu_is_linked_with_and_without_its_target() -> Result<()> {
    let shell = shell(&Case::load("llama3")?)?;
    let compile = ["compile", "checkpoint", "--dtype", "bf16", "--target", "cuda:sm_90a", "-o", "gpu.xfm"];
    shell.run("xfc", &compile)?.success()?;
    let mut kept = Vec::new();
    for (linker, first) in [("1", true), ("2", true), ("2", false)] {
        let cache = shell.folder().join(format!("cache{linker}")).display().to_string();
        let settings = [
            ("XFC_DRIVER_CAPABILITY", "90".to_owned()),
            ("XFC_DRIVER_LINKER", linker.to_owned()),
            ("XFC_CACHE_DIR", cache),
        ];
        let arguments = ["run", "gpu.xfm", "--checkpoint", "checkpoint", "--tokens", "1,2,3", "-n", "2", "--json"];
        let ran = json(&shell.run_on_driver(&settings, &arguments)?.success()?)?;
        let start = &ran["start"];
        let expected = if first { 0 } else { start["kernels"].as_u64().unwrap_or(0) };
        assert_eq!(start["kernels_kept"].as_u64(), Some(expected), "linker {linker}: {start}");
        kept.push(ran["ids"].clone());
    }
    assert!(kept.iter().all(|ids| *ids == kept[0]), "{kept:?}");
    Ok(())
}

#[test]
fn a_launch_that_fails_is_named_where_each_is_waited_for() -> Result<()> {
    let shell = compiled("llama3")?;
    let arguments = [&["run", "gpu.xfm"][..], &RUN].concat();
    let failing = |settings: &[(&str, String)]| -> Result<String> {
        let fault = ("XFC_DRIVER_FAULT", "5".to_owned());
        let ran = shell.run_on_driver(&[&[fault], settings].concat(), &arguments)?;
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        assert!(ran.stderr.contains("CUDA_ERROR_LAUNCH_FAILED (unspecified launch failure)"), "{}", ran.stderr);
        Ok(ran.stderr)
    };
    let check = ("XFC_CUDA_CHECK", "1".to_owned());
    assert!(!failing(&[])?.contains("kernel"));
    let named = failing(std::slice::from_ref(&check))?;
    for part in ["launch 4 (layers.0.", "), kernel ", " blocks of ", " threads and ", " bytes of shared memory"] {
        assert!(named.contains(part), "{part:?} is not in {named}");
    }
    // Without a fault the tokens are the same, and nothing is recorded.
    let same =
        |settings: &[(&str, String)]| -> Result<Value> { json(&shell.run_on_driver(settings, &arguments)?.success()?) };
    let (plain, checked) = (same(&[])?, same(&[check])?);
    assert_eq!(plain["ids"], checked["ids"]);
    assert_eq!((&plain["start"]["captures"], &checked["start"]["captures"]), (&1.into(), &0.into()));
    Ok(())
}

/// Where the GPU is of 9.0 and the driver takes it, all launches of a step but its first may begin before the one before them has ended.
#[test]
fn launches_overlap_where_gpu_and_driver_let_them() -> Result<()> {
    let shell = compiled("llama3")?;
    let arguments = ["compile", "checkpoint", "--target", "cuda:sm_90a", "-o", "gpu90.xfm"];
    shell.run("xfc", &arguments)?.success()?;
    let log = shell.folder().join("calls");
    let run = |settings: &[(&str, &str)], more: &[&str]| -> Result<(Value, String, [usize; 2])> {
        let _ = fs::remove_file(&log);
        let mut all = vec![("XFC_DRIVER_CAPABILITY", "90".to_owned()), ("XFC_DRIVER_LOG", log.display().to_string())];
        all.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let ran = shell.run_on_driver(&all, &[&["run", "gpu90.xfm"], &RUN[..], more].concat())?;
        let said = ran.stderr.clone();
        let calls = fs::read_to_string(&log)?;
        let count = |name: &str| calls.lines().filter(|call| *call == name).count();
        Ok((json(&ran.success()?)?, said, [count("cuLaunchKernel"), count("cuLaunchKernelEx")]))
    };
    let wanted = json(&shell.run_on_driver(&[], &[&["run", "cpu.xfm"], &RUN[..]].concat())?.success()?)?;
    let (report, _, [behind, early]) = run(&[], &[])?;
    assert_eq!(report["ids"], wanted["ids"]);
    // Two steps are recorded, whose first launches are behind all before them.
    let recordings = report["start"]["captures"].as_u64().unwrap_or(0);
    assert!(recordings >= 1, "{report}");
    let steps = fs::read_to_string(&log)?.lines().filter(|call| *call == "cuStreamBeginCapture_v2").count();
    assert_eq!(behind, steps);
    assert!(early > 10 * steps, "{early} of {steps} steps");

    // A driver that refuses it is asked once, and the step recorded again.
    let (report, said, [behind, tried]) = run(&[("XFC_DRIVER_OVERLAP", "0")], &[])?;
    assert_eq!((&report["ids"], tried), (&wanted["ids"], 1));
    assert!(behind >= early + steps, "{behind}: {said}");
    // One that is too old, or a user who wants none, is not asked.
    for settings in [("XFC_DRIVER_VERSION", "12020"), ("XFC_CUDA_OVERLAP", "0")] {
        let (report, _, [behind, tried]) = run(&[settings], &[])?;
        assert_eq!((&report["ids"], behind, tried), (&wanted["ids"], early + steps, 0), "{settings:?}");
    }
    // Code for older GPUs waits for nothing.
    let settings = [("XFC_DRIVER_CAPABILITY", "90".to_owned()), ("XFC_DRIVER_LOG", log.display().to_string())];
    fs::remove_file(&log)?;
    shell.run_on_driver(&settings, &[&["run", "gpu.xfm"], &RUN[..]].concat())?.success()?;
    assert!(!fs::read_to_string(&log)?.contains("cuLaunchKernelEx"));
    Ok(())
}

#[test]
fn outputs_of_several_steps_and_of_a_source_match() -> Result<()> {
    for name in ["t5", "mamba2", "gemma3"] {
        let case = Case::load(name)?;
        let shell = compiled(name)?;
        let arguments = [
            "logits",
            "gpu.xfm",
            "--checkpoint",
            "checkpoint",
            "--inputs",
            "inputs.json",
            "--gpu",
            "1",
            "-o",
            "a.safetensors",
        ];
        shell.run_on_driver(&[], &arguments)?.success()?;
        outputs_match(&case, &shell.folder().join("a.safetensors"), Precision::F32)?;
    }
    Ok(())
}

/// Kernels to which launches bring shared memory, in steps of many rows and of one.
#[test]
fn tensor_cores_have_the_memory_that_they_ask_for() -> Result<()> {
    let shell = compiled_in("llama3", "bf16")?;
    let log = shell.folder().join("calls");
    let settings = [("XFC_DRIVER_LOG", log.display().to_string())];
    let tokens: Vec<String> = (1..80).map(|i| (i * 7 % 90).to_string()).collect();
    let tokens = tokens.join(",");
    let arguments = ["run", "gpu.xfm", "--checkpoint", "checkpoint", "--tokens", &tokens, "-n", "3", "--json"];
    let ran = json(&shell.run_on_driver(&settings, &arguments)?.success()?)?;
    assert_eq!(ran["ids"].as_array().map(Vec::len), Some(3), "{ran}");
    assert!(fs::read_to_string(&log)?.lines().any(|call| call == "cuFuncSetAttribute"));
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_taken() -> Result<()> {
    let shell = compiled("llama3")?;
    let log = shell.folder().join("calls");
    let arguments = |context: &'static str| [&["run", "gpu.xfm"][..], &RUN, &["-c", context]].concat();
    let settings =
        |bytes: &str| [("XFC_DRIVER_MEMORY", bytes.to_owned()), ("XFC_DRIVER_LOG", log.display().to_string())];
    let ran = shell.run_on_driver(&settings("100000"), &arguments("64"))?;
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    for part in
        ["does not fit on GPU 0 (Emulated 0): weights ", "caches ", "together ", "100.00 KB of 100.00 KB are free"]
    {
        assert!(ran.stderr.contains(part), "{part:?} is not in {}", ran.stderr);
    }
    assert!(!fs::read_to_string(&log)?.contains("cuMemAlloc"), "nothing is taken");
    Ok(())
}

#[test]
fn gpus_are_named_and_missing_ones_refused() -> Result<()> {
    let shell = compiled("llama3")?;
    let devices = json(&shell.run_on_driver(&[], &["devices", "--format", "json"])?.success()?)?;
    assert_eq!(devices["devices"][1]["name"], "Emulated 1");
    let none = shell.run_on_driver(&[("XFC_DRIVER_GPUS", "0".to_owned())], &["devices"])?;
    assert_eq!((none.code, none.stdout.as_str()), (Some(4), ""), "{}", none.stderr);
    let other = shell.run_on_driver(&[], &[&["run", "gpu.xfm"][..], &RUN, &["--gpu", "7"]].concat())?;
    assert!(other.code == Some(2) && other.stderr.contains("0 (Emulated 0), 1 (Emulated 1)"), "{}", other.stderr);
    // Without a driver, nothing is compiled for what cannot run.
    let ran = shell.run("xfc", &["run", "llama3", "--tiny", "--target", "cuda", "--tokens", "1", "-n", "1"])?;
    assert!(ran.code == Some(4) && ran.stderr.contains("needs an NVIDIA GPU and its driver"), "{}", ran.stderr);
    assert!(!shell.folder().join(".cache/artifacts").exists(), "nothing was compiled");
    Ok(())
}

#[test]
fn a_benchmark_measures_the_gpu() -> Result<()> {
    let shell = compiled("llama3")?;
    let few = [
        "bench",
        "gpu.xfm",
        "-p",
        "4",
        "-n",
        "3",
        "--repeats",
        "1",
        "--attempts",
        "1",
        "--profile",
        "--format",
        "json",
    ];
    // Little memory, so that the emulator has little to read; the GPU is one that has every way to multiply.
    let settings = [("XFC_DRIVER_MEMORY", "40000000".to_owned()), ("XFC_DRIVER_CAPABILITY", "90".to_owned())];
    let report = json(&shell.run_on_driver(&settings, &few)?.success()?)?;
    assert_eq!(report["model"]["gpu"], "GPU 0 (Emulated 0)");
    let start = &report["start"];
    assert!(start["captures"].as_u64() >= Some(1) && start["first_token_seconds"].as_f64() > Some(0.0), "{start}");
    for row in report["rows"].as_array().into_iter().flatten() {
        let limits = &row["runs"][0]["after"];
        for figure in [
            "read_bytes_per_second",
            "copy_bytes_per_second",
            "f32_flops_per_second",
            "half_flops_per_second",
            "byte_ops_per_second",
            "launch_ns",
        ] {
            assert!(limits[figure].as_f64() > Some(0.0), "{figure}: {limits}");
        }
        assert!(row["launches"].as_u64() > Some(3) && row["of_launches"]["mean"].as_f64() > Some(0.0), "{row}");
    }
    let kernels = report["profiles"][1]["summary"]["kernels"].as_array().map_or(0, Vec::len);
    assert!(kernels > 3, "{}", report["profiles"]);
    Ok(())
}

#[test]
fn what_measures_a_gpu_runs_and_keeps_its_result_to_itself() -> Result<()> {
    for text in texts::all() {
        let module = Module::parse(&text.text)?;
        let mut memory = Memory::new();
        let (blocks, turns) = (2u32, 3u32);
        let bytes = u64::from(blocks * texts::THREADS * texts::READ_BYTES * turns);
        let from = memory.alloc(bytes, 256);
        let to = memory.alloc(4, 4);
        let of_kernel = module.kernel("kernel").ok_or("no kernel")?.params.len();
        let turns = turns.to_le_bytes();
        let params = match of_kernel {
            0 => vec![],
            2 => [&to.to_le_bytes()[..], &turns].concat(),
            _ => [&from.to_le_bytes()[..], &to.to_le_bytes(), &turns].concat(),
        };
        launch(&module, "kernel", &mut memory, &Launch::new([blocks, 1, 1], [texts::THREADS, 1, 1], &params))?;
        let mut result = [0; 4];
        memory.read(to, &mut result)?;
        assert_eq!(result, [0; 4], "{}", text.name);
    }
    Ok(())
}
