//! How fast the emulator is: instructions of whole warps a second, in loops of one kind of instruction each.
//!
//!     cargo run -p xfc-emulator --example speed

use std::io::Write;
use std::time::Instant;

use xfc_emulator::{Launch, Memory, Module, launch};

/// Loops of 2000 rounds with the given body, unrolled ten times, by 4 warps.
const LOOPS: [(&str, &str); 9] = [
    ("add and multiply", "mad.lo.u32 %r1, %r1, %r2, %r3;"),
    ("fma", "fma.rn.f32 %f1, %f1, %f2, %f3;"),
    ("compare and select", "setp.lt.s32 %p1, %r1, %r2;\nselp.b32 %r1, %r3, %r1, %p1;"),
    ("conversion to bf16", "cvt.rn.bf16x2.f32 %r1, %f1, %f2;"),
    ("global load", "ld.global.b32 %r4, [%rd2];"),
    ("shared load", "ld.shared.b32 %r4, [%r6];"),
    ("shared store", "st.shared.b32 [%r6], %r4;"),
    ("ldmatrix", "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r8, %r9, %r10, %r11}, [%r7];"),
    (
        "mma of 16 by 8 by 16",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f4, %f5, %f6, %f7}, {%r8, %r9, %r10, %r11}, {%r12, %r13}, {%f4, %f5, %f6, %f7};",
    ),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout();
    for (name, instruction) in LOOPS {
        let rounds = if instruction.contains("sync") { 200 } else { 2000 };
        let text = format!(
            ".version 8.6\n.target sm_90a\n.address_size 64
.entry k(.param .u64 data)
{{
.reg .b32 %r<16>; .reg .f32 %f<8>; .reg .b64 %rd<4>; .reg .pred %p<4>;
.shared .align 16 .b8 s[8192];
ld.param.u64 %rd1, [data];
mov.u32 %r1, %tid.x;
mul.wide.u32 %rd2, %r1, 4;
add.s64 %rd2, %rd2, %rd1;
mov.u32 %r5, s;
mad.lo.u32 %r6, %r1, 4, %r5;
mad.lo.u32 %r7, %r1, 16, %r5;
st.shared.v4.b32 [%r7], {{0, 0, 0, 0}};
bar.sync 0;
mov.u32 %r0, 0;
LOOP:
{}
add.u32 %r0, %r0, 1;
setp.lt.u32 %p0, %r0, {rounds};
@%p0 bra LOOP;
ret;
}}",
            format!("{instruction}\n").repeat(10)
        );
        let module = Module::parse(&text)?;
        let mut memory = Memory::new();
        let data = memory.alloc(512, 16);
        let started = Instant::now();
        let stats = launch(&module, "k", &mut memory, &Launch::new([1, 1, 1], [128, 1, 1], &data.to_le_bytes()))?;
        let seconds = started.elapsed().as_secs_f64();
        let millions = stats.warp_instructions as f64 / seconds / 1e6;
        writeln!(out, "{name:24} {millions:8.2} million warp instructions a second")?;
    }
    Ok(())
}
