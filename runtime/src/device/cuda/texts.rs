//! Kernels of the runtime's own, as PTX: what measures a GPU's limits. Everything that runs code for sm_80 runs them.
//!
//! Each is a function `kernel` of [`THREADS`] threads a block. A result that no measurement has keeps the loops from being left out.

use crate::artifact::manifest::Products;
use std::fmt::Write;

/// Threads of a block.
pub const THREADS: u32 = 256;
/// Bytes that a thread reads in a turn of [`read`]: so many loads of 16 bytes.
pub const READ_BYTES: u32 = 16 * LOADS;
const LOADS: u32 = 8;
/// Products in a row that need nothing of each other.
const CHAINS: u32 = 8;
/// How often they are repeated in a turn, so that counting turns takes no time.
const ROUNDS: u32 = 16;

/// A kernel, and the operations of a thread in a turn of its loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// What it measures: `read`.
    pub name: &'static str,
    /// PTX.
    pub text: String,
    /// Of a thread in a turn; 0 where nothing is multiplied.
    pub operations: u64,
}

/// All of them.
pub fn all() -> Vec<Text> {
    let products = [Products::Single, Products::Half, Products::Byte].map(products);
    [nothing(), read()].into_iter().chain(products).collect()
}

fn module(parameters: &str, body: &str) -> String {
    format!(
        ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry kernel({parameters})\n.reqntid {THREADS}, 1, 1\n{{\n{body}\tret;\n}}\n"
    )
}

/// A kernel without parameters that does nothing.
pub fn nothing() -> Text {
    Text { name: "nothing", text: module("", ""), operations: 0 }
}

/// Reads memory: `from` (u64), `to` (u64, 4 bytes), `turns` (u32). In a turn all threads together read [`READ_BYTES`] bytes each, side by side.
pub fn read() -> Text {
    let mut body = String::from(
        "\t.reg .pred %p;\n\t.reg .b32 %t, %n, %i, %x;\n\t.reg .b64 %from, %to, %at, %step;\n\
         \tld.param.u64 %from, [from];\n\tld.param.u64 %to, [to];\n\tld.param.u32 %t, [turns];\n\
         \tmov.u32 %i, %ctaid.x;\n\tmov.u32 %n, %tid.x;\n",
    );
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = writeln!(body, "{text}");
    };
    line(format_args!("\tmad.lo.u32 %i, %i, {THREADS}, %n;"));
    line(format_args!("\tmul.wide.u32 %at, %i, 16;\n\tadd.u64 %at, %from, %at;"));
    line(format_args!("\tmov.u32 %n, %nctaid.x;\n\tmul.wide.u32 %step, %n, {};", THREADS * 16));
    line(format_args!("\tmov.u32 %x, 0;"));
    for i in 0..LOADS {
        line(format_args!("\t.reg .b32 %a{i}, %b{i}, %c{i}, %d{i};"));
    }
    line(format_args!("LOOP:"));
    for i in 0..LOADS {
        line(format_args!("\tld.global.v4.u32 {{%a{i}, %b{i}, %c{i}, %d{i}}}, [%at];\n\tadd.u64 %at, %at, %step;"));
    }
    for i in 0..LOADS {
        for register in ["a", "b", "c", "d"] {
            line(format_args!("\txor.b32 %x, %x, %{register}{i};"));
        }
    }
    line(format_args!("\tsub.u32 %t, %t, 1;\n\tsetp.ne.u32 %p, %t, 0;\n\t@%p bra LOOP;"));
    line(format_args!("\tsetp.eq.u32 %p, %x, 0x7ff1f1f1;\n\t@%p st.global.u32 [%to], %x;"));
    let text = module(".param .u64 from, .param .u64 to, .param .u32 turns", &body);
    Text { name: "read", text, operations: 0 }
}

/// Multiplies: `to` (u64, 4 bytes), `turns` (u32). In f32 by `fma`, in bf16 and bytes by tensor cores (`mma.sync`).
pub fn products(products: Products) -> Text {
    // Registers of a chain's sum, and what one product does of a thread's share.
    let (name, sum, operations) = match products {
        Products::Single => ("f32", 1, 2),
        Products::Half => ("bf16", 4, 2 * 16 * 8 * 16 / 32),
        Products::Byte => ("bytes", 4, 2 * 16 * 8 * 32 / 32),
    };
    let mut body = String::from(
        "\t.reg .pred %p;\n\t.reg .b32 %t, %x, %a, %b;\n\t.reg .b64 %to;\n\
         \tld.param.u64 %to, [to];\n\tld.param.u32 %t, [turns];\n\tmov.u32 %x, %tid.x;\n",
    );
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(body, "{text}");
    };
    // Numbers that differ from thread to thread, near 1 in f32 and bf16 and small in bytes.
    line(format_args!("\tand.b32 %x, %x, 31;\n\tmul.lo.u32 %x, %x, 0x00010001;"));
    line(format_args!("\tor.b32 %a, %x, 0x3f803f80;\n\tor.b32 %b, %x, 0x3f003f00;"));
    for chain in 0..CHAINS {
        for i in 0..sum {
            line(format_args!("\t.reg .b32 %s{chain}_{i};\n\tmov.b32 %s{chain}_{i}, 0;"));
        }
    }
    line(format_args!("LOOP:"));
    let sums = |chain: u32| (0..sum).map(|i| format!("%s{chain}_{i}")).collect::<Vec<_>>().join(", ");
    for chain in (0..ROUNDS).flat_map(|_| 0..CHAINS) {
        let s = sums(chain);
        match products {
            Products::Single => line(format_args!("\tfma.rn.f32 {s}, %a, %b, {s};")),
            Products::Half => line(format_args!(
                "\tmma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{{s}}}, {{%a, %a, %a, %a}}, {{%b, %b}}, {{{s}}};"
            )),
            Products::Byte => line(format_args!(
                "\tmma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {{{s}}}, {{%a, %a, %a, %a}}, {{%b, %b}}, {{{s}}};"
            )),
        }
    }
    line(format_args!("\tsub.u32 %t, %t, 1;\n\tsetp.ne.u32 %p, %t, 0;\n\t@%p bra LOOP;"));
    line(format_args!("\tmov.u32 %x, 0;"));
    for chain in 0..CHAINS {
        for i in 0..sum {
            line(format_args!("\txor.b32 %x, %x, %s{chain}_{i};"));
        }
    }
    line(format_args!("\tsetp.eq.u32 %p, %x, 0x7ff1f1f1;\n\t@%p st.global.u32 [%to], %x;"));
    let text = module(".param .u64 to, .param .u32 turns", &body);
    Text { name, text, operations: u64::from(CHAINS * ROUNDS) * operations }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_those_of_the_instructions() {
        let counted = |name: &str| all().into_iter().find(|text| text.name == name).unwrap().operations;
        // Of a warp: 16 x 8 sums of 16, and of 32, products.
        assert_eq!(counted("bf16") * 32, 16 * 8 * 2 * 16 * 8 * 16);
        assert_eq!(counted("bytes") * 32, 16 * 8 * 2 * 16 * 8 * 32);
        assert_eq!(counted("f32"), 16 * 16);
        assert_eq!(READ_BYTES as usize, read().text.matches("ld.global.v4.u32").count() * 16);
    }
}
