//! Launches that may begin before those before them have ended: what they may do before `griddepcontrol.wait`, and that they must execute it.

#![expect(clippy::unwrap_used, reason = "a test that cannot set its case up has failed")]

use xfc_emulator::{Fault, FaultKind, Launch, Memory, Module, Stats, launch};

use crate::harness::{HEADER, kernel, kernel_with};

const WAIT: &str = "griddepcontrol.wait;\n";

/// Memory with two buffers, and launches with both as arguments.
struct Device {
    memory: Memory,
    buffers: [u64; 2],
}

impl Device {
    fn new() -> Self {
        let mut memory = Memory::new();
        let buffers = [memory.alloc(4096, 256), memory.alloc(4096, 256)];
        Self { memory, buffers }
    }

    fn launch(&mut self, text: &str, overlaps: bool) -> Result<Stats, Box<Fault>> {
        let params: Vec<u8> = self.buffers.iter().flat_map(|p| p.to_le_bytes()).collect();
        let mut how = Launch::new([2, 1, 1], [32, 1, 1], &params);
        how.overlaps = overlaps;
        launch(&Module::parse(text).unwrap(), "k", &mut self.memory, &how)
    }

    /// What a body does wrong as a launch that begins early, behind one that writes to `out`.
    fn second(body: &str) -> Option<FaultKind> {
        let mut device = Self::new();
        device.launch(&kernel("st.global.u32 [%out], 1;"), false).unwrap();
        device.launch(&kernel(body), true).err().map(|fault| fault.kind)
    }
}

#[track_caller]
fn early(body: &str) {
    let found = Device::second(body);
    assert!(matches!(found, Some(FaultKind::Early(_))), "{body}: {found:?}");
}

#[track_caller]
fn fine(body: &str) {
    assert_eq!(Device::second(body), None, "{body}");
}

#[test]
fn what_launches_before_write_is_read_behind_the_wait() {
    let read = "ld.global.u32 %r0, [%out+64];\n";
    fine(&format!("{WAIT}{read}"));
    early(&format!("{read}{WAIT}"));
    // Of memory that no launch of the run writes, anything.
    fine(&format!("ld.global.u32 %r0, [%in];\n{WAIT}"));
    // The wait is a thread's own.
    early(&format!("setp.eq.u32 %p0, %t, 0;\n@%p0 griddepcontrol.wait;\n{read}{WAIT}"));
    let copy = ".shared .align 16 .b8 s[1024];\nmov.u32 %r20, s;\nmad.lo.u32 %r21, %t, 16, %r20;\n";
    let asynchronous = "cp.async.cg.shared.global [%r21], [%out], 16;\ncp.async.commit_group;\n";
    let behind = "cp.async.wait_group 0;\n";
    fine(&format!("{copy}{WAIT}{asynchronous}{behind}"));
    early(&format!("{copy}{asynchronous}{WAIT}{behind}"));
    let text = |first: &str, second: &str| {
        format!(
            ".shared .align 16 .b8 b[128];\n.shared .align 8 .b64 m;\nmov.u32 %r20, b;\nmov.u32 %r21, m;\n\
             setp.eq.u32 %p0, %t, 0;\n{first}@%p0 mbarrier.init.shared::cta.b64 [%r21], 1;\nfence.proxy.async;\nbar.sync 0;\n\
             @%p0 mbarrier.arrive.expect_tx.shared::cta.b64 %a1, [%r21], 64;\n\
             @%p0 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r20], [%out], 64, [%r21];\n{second}\
             w: mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r21], 0;\n@!%p1 bra w;"
        )
    };
    fine(&text(WAIT, ""));
    early(&text("", WAIT));
}

#[test]
fn what_launches_before_may_still_use_is_written_behind_the_wait() {
    for write in ["st.global.u32 [%in], 1;\n", "red.global.add.u32 [%in], 1;\n", "atom.global.add.u32 %r0, [%in], 1;\n"]
    {
        fine(&format!("{WAIT}{write}"));
        early(&format!("{write}{WAIT}"));
    }
}

#[test]
fn every_thread_waits() {
    early("mov.u32 %r0, 1;");
    early(&format!("setp.gt.u32 %p0, %t, 3;\n@%p0 bra done;\n{WAIT}done:"));
    // A launch that begins behind all others need not.
    Device::new().launch(&kernel("mov.u32 %r0, 1;"), false).unwrap();
}

#[test]
fn a_launch_behind_all_others_begins_a_new_run() {
    let mut device = Device::new();
    device.launch(&kernel("st.global.u32 [%out], 1;"), false).unwrap();
    let read = kernel(&format!("ld.global.u32 %r0, [%out];\n{WAIT}"));
    assert!(device.launch(&read, true).is_err());
    // What was written two launches ago may not be there either.
    device.launch(&kernel(WAIT), true).unwrap();
    assert!(device.launch(&read, true).is_err());
    device.launch(&kernel(""), false).unwrap();
    device.launch(&read, true).unwrap();
    // What the host writes is there.
    let mut device = Device::new();
    device.memory.write(device.buffers[1], &[1; 64]).unwrap();
    device.launch(&kernel(""), false).unwrap();
    device.launch(&read, true).unwrap();
    // The first of all has none before it.
    Device::new().launch(&read, true).unwrap();
}

#[test]
fn dependents_are_let_begin_whenever() {
    fine(&format!("griddepcontrol.launch_dependents;\n{WAIT}st.global.u32 [%out], 1;"));
    fine(&format!("{WAIT}st.global.u32 [%out], 1;\ngriddepcontrol.launch_dependents;"));
    let Err(error) = Module::parse(&kernel("griddepcontrol.now;")) else { panic!("understood") };
    assert!(error.to_string().contains("griddepcontrol"), "{error}");
}

#[test]
fn what_is_asked_for_ahead_is_memory_and_is_read() {
    let ask = |at: &str, bytes: u32| {
        format!("setp.eq.u32 %p0, %t, 0;\n@%p0 cp.async.bulk.prefetch.L2.global [{at}], {bytes};\n")
    };
    let run = |body: &str| {
        let mut device = Device::new();
        device.launch(&kernel("st.global.u32 [%out], 1;"), false).unwrap();
        device.launch(&kernel(body), true)
    };
    // A hint needs no wait. Each of two blocks asks for 256 bytes and reads half of them.
    let read = "mad.wide.u32 %slot, %t, 4, %out;\nld.global.u32 %r0, [%slot];\n";
    let stats = run(&format!("{}{WAIT}{read}", ask("%out", 256))).unwrap();
    assert_eq!((stats.prefetched_bytes, stats.prefetched_in_vain), (512, 256));
    for (wrong, bytes) in [("%out+4096", 16), ("%out+8", 16), ("%out", 8), ("%out+4080", 32)] {
        assert!(run(&format!("{}{WAIT}", ask(wrong, bytes))).is_err(), "{wrong}, {bytes}");
    }
}

#[test]
fn variables_of_a_module_are_there() {
    let text = kernel_with(".global .align 4 .u32 g = 3;", &format!("mov.u64 %a0, g;\nld.u32 %r0, [%a0];\n{WAIT}"));
    assert!(text.starts_with(HEADER));
    let mut device = Device::new();
    device.launch(&kernel("st.global.u32 [%out], 1;"), false).unwrap();
    device.launch(&text, true).unwrap();
}
