//! NVIDIA's assembler, which says of PTX whether it is code for an architecture, and what of a processor's registers and memory it takes. It needs no GPU.
//!
//! [`Ptxas::find`] promises a program of the version that results are recorded for; when there is none, the error says how to get it. `make test` does.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::Result;

/// The version that tools/fetch_ptxas.sh gets, and whose numbers the snapshots hold.
pub const VERSION: &str = "13.5.37";

/// The assembler.
#[derive(Clone, Debug)]
pub struct Ptxas(PathBuf);

/// What a kernel takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of a thread's registers that are kept in memory meanwhile, as stored and loaded by its code.
    pub spilled_bytes: [u32; 2],
    /// Bytes of memory that a thread has of its own.
    pub stack_bytes: u32,
    /// Bytes of shared memory of a block.
    pub shared_bytes: u32,
    /// Asynchronous products do not go on by themselves: ptxas has them follow one another, or has put waits between them that the code does not have.
    pub waits: bool,
}

impl Ptxas {
    /// The program that `XFC_PTXAS` names, or that tools/fetch_ptxas.sh got.
    ///
    /// # Errors
    /// There is none, or it is another version.
    pub fn find() -> Result<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = || set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        let fetched = || cache().map(|cache| cache.join("xfc/tools").join(format!("ptxas-{VERSION}")));
        let path = set("XFC_PTXAS").or_else(fetched).ok_or("none of XFC_PTXAS, XDG_CACHE_HOME and HOME is set")?;
        let advice = format!(
            "tools/fetch_ptxas.sh gets ptxas {VERSION} from PyPI (or make test); elsewhere install it with CUDA's toolkit and set XFC_PTXAS to its path"
        );
        let said = Command::new(&path).arg("--version").output();
        let said = said.map_err(|error| format!("there is no ptxas at {}: {error}; {advice}", path.display()))?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        if !said.contains(&format!("V{VERSION}")) {
            return Err(format!("{} is not ptxas {VERSION} but says {said:?}; {advice}", path.display()).into());
        }
        Ok(Ptxas(path))
    }

    /// Assembles a module of one kernel for an architecture such as `sm_80`.
    ///
    /// # Errors
    /// What ptxas has against it, in its words.
    pub fn assemble(&self, module: &str, arch: &str) -> Result<Taken> {
        let mut command = Command::new(&self.0);
        command.args([&format!("--gpu-name={arch}"), "--verbose", "--output-file=/dev/null", "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        // It reads all before it says anything, and may refuse after the first lines.
        let written = child.stdin.take().map(|mut stdin| stdin.write_all(module.as_bytes()));
        let output = child.wait_with_output()?;
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        if !output.status.success() {
            return Err(said.trim().into());
        }
        written.transpose()?;
        taken(&said).ok_or_else(|| format!("ptxas does not say what the kernel takes: {said}").into())
    }
}

/// Reads what ptxas says of products, `Used 31 registers, used 1 barriers, 576 bytes smem` and `16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads`.
fn taken(said: &str) -> Option<Taken> {
    // C7510 and its like say why products are serialised, C7517 where a wait is put in.
    let waits = said.contains("(C75");
    let said = &said[said.find("Function properties")?..];
    let before = |what: &str| {
        let at = said.find(what)?;
        said[..at].split_whitespace().next_back()?.parse().ok()
    };
    Some(Taken {
        waits,
        registers: before(" registers")?,
        spilled_bytes: [before(" bytes spill stores")?, before(" bytes spill loads")?],
        stack_bytes: before(" bytes stack frame")?,
        // What is none is not said.
        shared_bytes: if said.contains(" bytes smem") { before(" bytes smem")? } else { 0 },
    })
}
