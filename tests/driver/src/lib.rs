//! A CUDA driver without a GPU: the functions of `libcuda.so` that the runtime calls, with kernels run by the emulator.
//!
//! It is lazier than a device and stricter than a driver. What is given to a stream is done only when something waits for it, so that memory which
//! is reused too early is seen with its new contents. Calls without a context, calls that a recording does not allow, kernels that
//! the emulator refuses, copies beyond an allocation and times that are not there yet are errors.
//!
//! | variable | meaning |
//! |---|---|
//! | `XFC_DRIVER_GPUS` | how many GPUs there are; 2 where it is not set |
//! | `XFC_DRIVER_MEMORY` | bytes of memory of each; 1 GB |
//! | `XFC_DRIVER_CAPABILITY` | their compute capability; 80 is 8.0 |
//! | `XFC_DRIVER_VERSION` | the version of CUDA that it knows; 12040 |
//! | `XFC_DRIVER_OVERLAP` | 0: launches that may begin before others have ended are refused |
//! | `XFC_DRIVER_LINKER` | 0: the linker refuses everything, modules are loaded as PTX; 2: it refuses to be told a target |
//! | `XFC_DRIVER_FAULT` | the number, from 1, of the kernel that fails when it is run |
//! | `XFC_DRIVER_LOG` | a file to which the name of each call is added, a line each |
//!
//! The machine code that its linker makes is the PTX behind a header. One file of exported functions, one of what they do, one of settings.

#![allow(unsafe_code, reason = "the interface of a library in C")]

mod exports;
mod settings;
mod state;
