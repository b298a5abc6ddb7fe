//! A machine by its limits: measured here, or read from a file.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use xfc_runtime::artifact::abi::PTX;
use xfc_runtime::artifact::manifest::Target;
use xfc_runtime::bench;
use xfc_runtime::bench::limits::{Effort, Isa, Narrow, Probe, Prober};
use xfc_runtime::cost::Work;
use xfc_runtime::device::cpu::ThreadPool;
use xfc_runtime::memory;

use crate::cost::thousands;
use crate::error::{CliError, Result};

/// What a machine can do at most.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    name: String,
    /// Where the numbers are from.
    source: String,
    /// Bytes of memory that a model may take.
    pub(crate) memory_bytes: u64,
    /// Bytes a second from memory.
    pub(crate) bytes_per_second: f64,
    /// Operations a second on 32-bit numbers.
    pub(crate) f32_flops: f64,
    /// Operations a second on 16-bit numbers, summed in 32 bits.
    pub(crate) half_flops: f64,
    /// Operations a second on 8-bit integers, summed in 32 bits.
    byte_ops: f64,
    /// Threads that have memory of their own.
    pub(crate) workers: u64,
}

/// A file that describes a machine.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    #[serde(default)]
    source: String,
    memory_bytes: f64,
    bytes_per_second: f64,
    f32_flops_per_second: f64,
    bf16_flops_per_second: f64,
    /// As in bf16 where it is not given.
    int8_ops_per_second: Option<f64>,
}

impl Machine {
    /// `this`, which is measured with the instructions of `target`, or a file.
    ///
    /// # Errors
    /// A file that cannot be read or is no machine; a machine that cannot be measured.
    pub(crate) fn named(name: &str, target: &Target) -> Result<Self> {
        if name == "this" { Self::this(target) } else { Self::read(Path::new(name)) }
    }

    fn this(target: &Target) -> Result<Self> {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let pool = ThreadPool::new(workers)
            .map_err(|e| CliError::usage(format!("cannot start {workers} threads: {e}"), "give `--machine FILE`"))?;
        if target.arch == PTX {
            let help = "give `--machine FILE`, as examples/machines/h200.yaml is one";
            return Err(CliError::usage(format!("the limits of a GPU for {} are not measured", target.name), help));
        }
        let isa = Isa::of(&target.arch, &target.features);
        let prober = Prober::new(Arc::new(pool), isa, Narrow::of(&target.features), Effort::default())?;
        let limits = prober.probe()?;
        let available = memory::available_bytes().or_else(memory::total_bytes).ok_or_else(|| {
            CliError::usage("the system does not say how much memory there is", "give `--machine FILE`")
        })?;
        Ok(Machine {
            name: bench::Machine::here().cpu,
            source: format!("measured now, {workers} threads, memory that is available"),
            memory_bytes: available,
            bytes_per_second: limits.read,
            f32_flops: limits.f32_flops,
            half_flops: limits.half_flops,
            byte_ops: limits.byte_ops,
            workers: workers as u64,
        })
    }

    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            CliError::usage(
                format!("{}: cannot read: {e}", path.display()),
                "give `--machine this`, or a file such as examples/machines/h200.yaml",
            )
        })?;
        let file: File = serde_yaml::from_str(&text)
            .map_err(|e| CliError::file(path, format!("is no description of a machine: {e}")))?;
        let byte_ops = file.int8_ops_per_second.unwrap_or(file.bf16_flops_per_second);
        let limits = [
            ("memory_bytes", file.memory_bytes),
            ("bytes_per_second", file.bytes_per_second),
            ("f32_flops_per_second", file.f32_flops_per_second),
            ("bf16_flops_per_second", file.bf16_flops_per_second),
            ("int8_ops_per_second", byte_ops),
        ];
        if let Some((key, value)) = limits.into_iter().find(|(_, v)| !(v.is_finite() && *v >= 1.0)) {
            return Err(CliError::file(path, format!("`{key}` is {value}, expected a number above 0")));
        }
        Ok(Machine {
            name: file.name,
            source: if file.source.is_empty() { path.display().to_string() } else { file.source },
            memory_bytes: file.memory_bytes as u64,
            bytes_per_second: file.bytes_per_second,
            f32_flops: file.f32_flops_per_second,
            half_flops: file.bf16_flops_per_second,
            byte_ops,
            workers: 1,
        })
    }

    /// The least time of the products of `work`, each width at its own rate.
    pub(crate) fn seconds_of_products(&self, work: &Work) -> f64 {
        work.seconds_of_products(self.f32_flops, self.half_flops, self.byte_ops)
    }

    /// Its limits on one line.
    pub(crate) fn text(&self) -> String {
        format!(
            "{}: {}B/s, {}FLOP/s in f32, {}FLOP/s in bf16, {}OP/s in int8, {} ({})",
            self.name,
            unit(self.bytes_per_second),
            unit(self.f32_flops),
            unit(self.half_flops),
            unit(self.byte_ops),
            memory::human(self.memory_bytes),
            self.source
        )
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "name": self.name, "source": self.source, "memory_bytes": self.memory_bytes, "bytes_per_second": self.bytes_per_second,
            "f32_flops_per_second": self.f32_flops, "bf16_flops_per_second": self.half_flops,
            "int8_ops_per_second": self.byte_ops,
        })
    }
}

/// `4.80 T` of a number, to be followed by a unit.
fn unit(n: f64) -> String {
    let text = thousands(n);
    match text.char_indices().next_back() {
        Some((at, letter)) if letter.is_alphabetic() => format!("{} {letter}", &text[..at]),
        _ => format!("{text} "),
    }
}
