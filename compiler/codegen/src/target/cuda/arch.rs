//! GPUs by the name of their architecture.

use xfc_lang::diagnostic::did_you_mean;

use crate::error::CodegenError;

/// A GPU architecture that code is generated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// LLVM's and PTX's name.
    pub name: &'static str,
    /// Version of PTX that its code is written in, times ten: the oldest that knows the architecture and all that kernels use.
    pub ptx: u32,
    /// Code for this architecture runs on it alone, and not on later ones.
    pub only: bool,
    /// Four warps multiply tiles together out of shared memory, which copies fill that count their bytes.
    pub teams: bool,
    /// Shared memory that a launch can bring for a block on every GPU that the code runs on.
    pub launched_bytes: u64,
    /// A launch may begin before the one before it has ended, and wait for it.
    pub overlaps: bool,
}

/// Shared memory that a launch can bring for a block on every GPU that code is made for.
pub const LAUNCHED_BYTES: u64 = 99 << 10;

/// Oldest first. PTX 7.0 is read by drivers from CUDA 11.0 on, 7.8 from 11.8, 8.0 from 12.0, 8.6 from 12.7.
pub const ARCHES: [Arch; 4] = [
    Arch { name: "sm_80", ptx: 70, only: false, teams: false, launched_bytes: LAUNCHED_BYTES, overlaps: false },
    Arch { name: "sm_89", ptx: 78, only: false, teams: false, launched_bytes: LAUNCHED_BYTES, overlaps: false },
    Arch { name: "sm_90a", ptx: 80, only: true, teams: true, launched_bytes: 227 << 10, overlaps: true },
    Arch { name: "sm_100", ptx: 86, only: false, teams: false, launched_bytes: LAUNCHED_BYTES, overlaps: true },
];

impl Arch {
    /// As on the command line.
    pub fn target(&self) -> String {
        format!("cuda:{}", self.name)
    }
}

/// What may follow `cuda:`, for messages.
pub fn known() -> String {
    let names: Vec<&str> = ARCHES.iter().map(|arch| arch.name).collect();
    format!("GPUs are `cuda` ({}, which later ones run too) and `cuda:ARCH` with {}", names[0], names.join(", "))
}

/// The architecture that `cuda` or `cuda:ARCH` means.
///
/// # Errors
/// An unknown architecture, with those that exist.
pub fn parse(name: &str) -> Result<Arch, CodegenError> {
    let wanted = name.strip_prefix("cuda").map(|rest| rest.strip_prefix(':').unwrap_or(rest)).unwrap_or(name);
    if wanted.is_empty() && name == "cuda" {
        return Ok(ARCHES[0]);
    }
    ARCHES.into_iter().find(|arch| arch.name == wanted).ok_or_else(|| {
        let near = did_you_mean(wanted, ARCHES.iter().map(|arch| arch.name));
        let near = near.map(|near| format!("; {near}")).unwrap_or_default();
        CodegenError::Target {
            name: name.to_owned(),
            reason: format!("there is no architecture `{wanted}`; {}{near}", known()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(parse("cuda").unwrap().name, "sm_80");
        assert_eq!(parse("cuda:sm_90a").unwrap().target(), "cuda:sm_90a");
        for wrong in ["cuda:", "cuda:sm_9", "cuda:90", "cuda:sm_90a+x"] {
            let message = parse(wrong).unwrap_err().to_string();
            assert!(message.contains("sm_80, sm_89, sm_90a, sm_100"), "{message}");
        }
    }
}
