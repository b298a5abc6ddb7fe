//! `devices`: the GPUs that this machine runs code on, for people and for scripts.

use super::Output;
use crate::device::cuda::{Gpu, driver_version, gpus, is_absent, memory_of};
use crate::error::{Result, RuntimeError};
use crate::memory::human;
use clap::ValueEnum;
use serde_json::{Value, json};

/// Form of the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DevicesFormat {
    /// A line a GPU.
    #[default]
    Text,
    /// The same as JSON.
    Json,
}

/// Arguments of `devices`.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct DevicesArgs {
    /// Form of the list
    #[arg(long, value_enum, default_value_t)]
    pub format: DevicesFormat,
}

/// A GPU as it is now.
struct Found {
    gpu: Gpu,
    /// Bytes that are free; why that is not known, where a GPU cannot be used.
    free: Result<u64>,
}

/// Runs the command.
///
/// # Errors
/// There is no GPU: [`EXIT_UNSUPPORTED`](crate::error::EXIT_UNSUPPORTED), which the command has for nothing else. A driver that does not work is an
/// error like any other.
pub fn run(args: &DevicesArgs, output: &mut Output<'_>) -> Result<()> {
    let none = |error: RuntimeError| match error {
        RuntimeError::Device { problem, .. } if is_absent() => RuntimeError::Unsupported {
            subject: "no CUDA device".to_owned(),
            problem,
            help: "code for processors (`--target cpu`) runs without one".to_owned(),
        },
        other => other,
    };
    let gpus = gpus().map_err(none)?;
    let driver = driver_version().map_err(none)?;
    let found: Vec<Found> =
        gpus.into_iter().map(|gpu| Found { free: memory_of(gpu.index).map(|(free, _)| free), gpu }).collect();
    match args.format {
        DevicesFormat::Text => output.print(format_args!("{}", text(driver, &found))),
        DevicesFormat::Json => output.print(format_args!("{:#}\n", json(driver, &found))),
    }
}

fn text(driver: (u32, u32), found: &[Found]) -> String {
    let mut text = format!("CUDA driver {}.{}\n", driver.0, driver.1);
    for Found { gpu, free } in found {
        let memory = match free {
            Ok(free) => format!("{} of {} free", human(*free), human(gpu.memory_bytes)),
            Err(error) => format!("{}; {error}", human(gpu.memory_bytes)),
        };
        text.push_str(&format!("{}  {}, {}, {memory}\n", gpu.index, gpu.name, arch(gpu)));
    }
    text
}

fn json(driver: (u32, u32), found: &[Found]) -> Value {
    let device = |Found { gpu, free }: &Found| {
        json!({
            "index": gpu.index, "name": gpu.name, "arch": arch(gpu), "capability": [gpu.capability.0, gpu.capability.1],
            "memory_total_bytes": gpu.memory_bytes, "memory_free_bytes": free.as_ref().ok(),
            "problem": free.as_ref().err().map(ToString::to_string),
        })
    };
    json!({ "cuda_version": format!("{}.{}", driver.0, driver.1), "devices": found.iter().map(device).collect::<Vec<_>>() })
}

/// `sm_90`.
fn arch(gpu: &Gpu) -> String {
    format!("sm_{}{}", gpu.capability.0, gpu.capability.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gpu_is_a_line_and_an_object() {
        let gpu =
            |index, name: &str| Gpu { index, name: name.to_owned(), capability: (9, 0), memory_bytes: 80_000_000_000 };
        let broken = RuntimeError::Device { device: "cuda", problem: "opening GPU 1 failed".to_owned() };
        let found =
            [Found { gpu: gpu(0, "One"), free: Ok(60_000_000_000) }, Found { gpu: gpu(1, "Two"), free: Err(broken) }];
        assert_eq!(
            text((12, 8), &found),
            "CUDA driver 12.8\n0  One, sm_90, 60.00 GB of 80.00 GB free\n1  Two, sm_90, 80.00 GB; cuda: opening GPU 1 failed\n"
        );
        let json = json((12, 8), &found);
        assert_eq!(json["cuda_version"], "12.8");
        assert_eq!(json["devices"][0]["memory_free_bytes"], 60_000_000_000u64);
        assert_eq!(json["devices"][0]["capability"], serde_json::json!([9, 0]));
        assert_eq!(json["devices"][1]["problem"], "cuda: opening GPU 1 failed");
    }
}
