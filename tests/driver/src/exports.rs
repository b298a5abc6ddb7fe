//! The exported functions: each writes a line to the log, finds what it is about, and answers with a code.

use std::ffi::{CStr, c_char, c_void};

use crate::settings::{capability, gpus, memory_bytes, takes_early, version};
use crate::state::{Done, Op, State, code, current, enter, lock, log};

/// The attribute of a launch that may begin before the one before it has ended.
const OVERLAPS: u32 = 6;
/// Attributes that are asked for.
const MULTIPROCESSORS: i32 = 16;
const CAPABILITY_MAJOR: i32 = 75;
const CAPABILITY_MINOR: i32 = 76;
/// What is set of functions.
const MAX_DYNAMIC_SHARED: i32 = 8;
/// Options of linkers.
const ERROR_LOG: u32 = 5;
const ERROR_LOG_BYTES: u32 = 6;
const TARGET: u32 = 9;

/// Writes a result where the caller wants it.
fn put<T>(to: *mut T, value: T) -> Done {
    if to.is_null() {
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: the interface: a place for the result that the caller owns.
    unsafe { to.write(value) };
    Ok(())
}

/// A handle as a pointer.
fn pointer(handle: u64) -> *mut c_void {
    std::ptr::without_provenance_mut(handle as usize)
}

fn handle(pointer: *mut c_void) -> u64 {
    pointer.addr() as u64
}

/// Runs a function of the driver.
fn call(name: &str, body: impl FnOnce(&mut State) -> Done) -> i32 {
    log(name);
    body(&mut lock()).err().unwrap_or(code::OK)
}

/// How a kernel is launched.
#[repr(C)]
struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: *mut c_void,
    attributes: *const Attribute,
    n: u32,
}

#[repr(C)]
struct Attribute {
    id: u32,
    value: [u64; 8],
}

/// Declares exported functions: name, arguments, body with the state.
macro_rules! exports {
    ($($name:ident($state:pat $(, $argument:ident: $type:ty)* $(,)?) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name($($argument: $type),*) -> i32 {
            call(stringify!($name), |$state| $body)
        }
    )*};
}

exports! {
    cuInit(_, flags: u32) { if flags == 0 { Ok(()) } else { Err(code::INVALID_VALUE) } }
    cuDriverGetVersion(_, known: *mut i32) { put(known, version()) }
    cuDeviceGetCount(_, count: *mut i32) { put(count, gpus()) }
    cuDeviceGet(_, device: *mut i32, ordinal: i32) {
        if (0..gpus()).contains(&ordinal) { put(device, ordinal) } else { Err(code::INVALID_DEVICE) }
    }
    cuDeviceGetName(_, name: *mut c_char, length: i32, device: i32) {
        let shown = format!("Emulated {device}\0");
        if shown.len() > length as usize {
            return Err(code::INVALID_VALUE);
        }
        shown.bytes().enumerate().try_for_each(|(i, byte)| put(name.wrapping_add(i), byte as c_char))
    }
    cuDeviceGetAttribute(_, value: *mut i32, attribute: i32, _device: i32) {
        match attribute {
            MULTIPROCESSORS => put(value, 2),
            CAPABILITY_MAJOR => put(value, capability() / 10),
            CAPABILITY_MINOR => put(value, capability() % 10),
            _ => Err(code::INVALID_VALUE),
        }
    }
    cuDeviceTotalMem_v2(_, bytes: *mut usize, _device: i32) { put(bytes, memory_bytes() as usize) }
    cuDevicePrimaryCtxRetain(_, context: *mut *mut c_void, device: i32) {
        put(context, pointer(device as u64 + 1))
    }
    cuDevicePrimaryCtxRelease_v2(_, _device: i32) { Ok(()) }
    cuCtxSetCurrent(_, context: *mut c_void) {
        enter((!context.is_null()).then(|| handle(context) as i32 - 1));
        Ok(())
    }
    cuStreamCreate(_, stream: *mut *mut c_void, _flags: u32) {
        current()?;
        put(stream, pointer(1))
    }
    cuStreamDestroy_v2(state, _stream: *mut c_void) { state.all() }
    cuStreamSynchronize(state, _stream: *mut c_void) { state.all() }
    cuStreamBeginCapture_v2(state, _stream: *mut c_void, _mode: u32) { state.begin_recording() }
    cuStreamEndCapture(state, _stream: *mut c_void, graph: *mut *mut c_void) {
        put(graph, pointer(state.end_recording()?))
    }
    cuMemAlloc_v2(state, address: *mut u64, bytes: usize) { put(address, state.allocate(bytes as u64)?) }
    cuMemFree_v2(state, address: u64) { state.free(address) }
    cuMemHostAlloc(state, start: *mut *mut c_void, bytes: usize, _flags: u32) {
        put(start, std::ptr::with_exposed_provenance_mut(state.allocate_pinned(bytes)?))
    }
    cuMemFreeHost(state, start: *mut c_void) { state.free_pinned(start.addr()) }
    cuMemGetInfo_v2(state, free: *mut usize, total: *mut usize) {
        put(free, state.free_bytes()? as usize)?;
        put(total, memory_bytes() as usize)
    }
    cuMemsetD8Async(state, to: u64, value: u8, bytes: usize, _stream: *mut c_void) {
        state.give(Op::Fill { to, value, bytes })
    }
    cuMemcpyHtoDAsync_v2(state, to: u64, from: *const c_void, bytes: usize, _stream: *mut c_void) {
        state.give(Op::ToDevice { to, from: from.expose_provenance(), bytes })
    }
    cuMemcpyDtoHAsync_v2(state, to: *mut c_void, from: u64, bytes: usize, _stream: *mut c_void) {
        state.give(Op::ToHost { to: to.expose_provenance(), from, bytes })
    }
    cuMemcpyDtoDAsync_v2(state, to: u64, from: u64, bytes: usize, _stream: *mut c_void) {
        state.give(Op::Within { to, from, bytes })
    }
    cuEventCreate(state, event: *mut *mut c_void, _flags: u32) { put(event, pointer(state.event()?)) }
    cuEventDestroy_v2(state, event: *mut c_void) { state.drop_event(handle(event)) }
    cuEventRecord(state, event: *mut c_void, _stream: *mut c_void) { state.give(Op::Event(handle(event))) }
    cuEventSynchronize(state, event: *mut c_void) { state.pass(handle(event)) }
    cuEventElapsedTime(state, ms: *mut f32, first: *mut c_void, second: *mut c_void) {
        put(ms, state.between(handle(first), handle(second))?)
    }
    cuLinkCreate_v2(
        state,
        n: u32,
        options: *const u32,
        values: *const *mut c_void,
        linker: *mut *mut c_void,
    ) {
        // SAFETY: the caller says how many options and values there are.
        let at = |i: usize| unsafe { (*options.add(i), (*values.add(i)).expose_provenance()) };
        let given: Vec<(u32, usize)> = (0..n as usize).map(at).collect();
        let find = |which| given.iter().find(|(option, _)| *option == which).map(|(_, value)| *value);
        let log = find(ERROR_LOG).zip(find(ERROR_LOG_BYTES));
        put(linker, pointer(state.linker(log, find(TARGET).is_some())?))
    }
    cuLinkAddData_v2(
        state,
        linker: *mut c_void,
        kind: u32,
        data: *const u8,
        bytes: usize,
        _name: *const c_char,
        _n: u32,
        _options: *const u32,
        _values: *const *mut c_void,
    ) {
        // PTX.
        if kind != 1 {
            return Err(code::INVALID_VALUE);
        }
        // SAFETY: the caller says how many bytes there are.
        state.link(handle(linker), unsafe { std::slice::from_raw_parts(data, bytes) })
    }
    cuLinkComplete(state, linker: *mut c_void, made: *mut *mut c_void, bytes: *mut usize) {
        let (start, length) = state.linked(handle(linker))?;
        put(made, std::ptr::with_exposed_provenance_mut(start))?;
        put(bytes, length)
    }
    cuLinkDestroy(state, linker: *mut c_void) { state.drop_linker(handle(linker)) }
    cuModuleLoadData(state, module: *mut *mut c_void, image: *const c_void) {
        put(module, pointer(state.load(image.expose_provenance())?))
    }
    cuModuleUnload(state, module: *mut c_void) { state.unload(handle(module)) }
    cuModuleGetFunction(state, function: *mut *mut c_void, module: *mut c_void, name: *const c_char) {
        // SAFETY: a name ends with a zero byte.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        put(function, pointer(state.function(handle(module), &name)?))
    }
    cuFuncGetAttribute(state, value: *mut i32, attribute: i32, function: *mut c_void) {
        match attribute {
            0 => put(value, state.most_threads(handle(function))?),
            // As many as an assembler gives a block of 384 threads that has a processor of a GPU to itself.
            4 => put(value, 168),
            _ => Err(code::INVALID_VALUE),
        }
    }
    cuFuncSetAttribute(state, function: *mut c_void, attribute: i32, value: i32) {
        match attribute {
            MAX_DYNAMIC_SHARED => state.allow_shared(handle(function), value),
            _ => Err(code::INVALID_VALUE),
        }
    }
    cuLaunchKernel(
        state,
        function: *mut c_void,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        _stream: *mut c_void,
        params: *mut *mut u8,
        _extra: *mut *mut c_void,
    ) {
        let shape = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let node = state.node(handle(function), shape, shared, params)?;
        state.give_kernel(node)
    }
    cuLaunchKernelEx(
        state,
        config: *const Config,
        function: *mut c_void,
        params: *mut *mut u8,
        _extra: *mut *mut c_void,
    ) {
        // SAFETY: the interface: a configuration that the caller owns.
        let Config { grid, block, shared, attributes, n, .. } = unsafe { &*config };
        // SAFETY: the configuration says how many attributes there are.
        let attributes = unsafe { std::slice::from_raw_parts(*attributes, *n as usize) };
        let mut node = state.node(handle(function), (*grid, *block), *shared, params)?;
        for attribute in attributes {
            match attribute.id {
                OVERLAPS if takes_early() => node.overlaps = attribute.value[0] as u32 != 0,
                _ => return Err(state.refuse_early()),
            }
        }
        state.give_kernel(node)
    }
    cuGraphInstantiateWithFlags(state, made: *mut *mut c_void, graph: *mut c_void, _flags: u64) {
        put(made, pointer(state.instantiate(handle(graph))?))
    }
    cuGraphDestroy(state, graph: *mut c_void) { state.drop_graph(handle(graph)) }
    cuGraphExecDestroy(state, graph: *mut c_void) { state.drop_graph(handle(graph)) }
    cuGraphUpload(state, graph: *mut c_void, _stream: *mut c_void) { state.nodes(handle(graph)).map(drop) }
    cuGraphLaunch(state, graph: *mut c_void, _stream: *mut c_void) {
        let nodes = state.nodes(handle(graph))?;
        state.give(Op::Launches(nodes))
    }
    cuGetErrorName(_, _error: i32, name: *mut *const c_char) { put(name, c"CUDA_ERROR".as_ptr()) }
    cuGetErrorString(_, error: i32, text: *mut *const c_char) {
        let said = match error {
            code::OUT_OF_MEMORY => c"out of memory",
            code::LAUNCH_FAILED => c"unspecified launch failure",
            code::INVALID_PTX => c"a PTX JIT compilation failed",
            code::CAPTURE_UNSUPPORTED => c"operation not permitted when stream is capturing",
            _ => c"an error of the emulated driver",
        };
        put(text, said.as_ptr())
    }
}
