//! Kernels of the runtime's own, as PTX: what measures a GPU's limits. Everything that runs code for sm_80 runs them, but for products by teams of
//! warps ([`teams`]), which are of one GPU alone.
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

/// Columns of a product of a team of four warps, which has 64 rows.
const TEAM_COLUMNS: u32 = 256;
/// Inputs of a product: 32 bytes. Four of them lie side by side in shared memory.
const TEAM_INPUT_BYTES: u32 = 32;

/// A kernel, and the operations of a thread in a turn of its loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The architecture that its code is for.
    pub arch: &'static str,
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
    let teams = [Products::Half, Products::Byte].into_iter().filter_map(teams);
    [nothing(), read()].into_iter().chain(products).chain(teams).collect()
}

/// What everything that code is generated for runs, in the oldest version of PTX that knows it.
const PORTABLE: (&str, &str) = ("sm_80", "7.0");
/// The one that has products of teams.
const OF_TEAMS: (&str, &str) = ("sm_90a", "8.0");

fn module((arch, version): (&str, &str), parameters: &str, body: &str) -> String {
    format!(
        ".version {version}\n.target {arch}\n.address_size 64\n.visible .entry kernel({parameters})\n.reqntid {THREADS}, 1, 1\n{{\n{body}\tret;\n}}\n"
    )
}

/// A kernel without parameters that does nothing.
pub fn nothing() -> Text {
    Text { arch: PORTABLE.0, name: "nothing", text: module(PORTABLE, "", ""), operations: 0 }
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
    let text = module(PORTABLE, ".param .u64 from, .param .u64 to, .param .u32 turns", &body);
    Text { arch: PORTABLE.0, name: "read", text, operations: 0 }
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
    let text = module(PORTABLE, ".param .u64 to, .param .u32 turns", &body);
    Text { arch: PORTABLE.0, name, text, operations: u64::from(CHAINS * ROUNDS) * operations }
}

/// The same parameters, by tensor cores that read shared memory by themselves (`wgmma`): of zeros, since what is multiplied does not change how long it
/// takes. In bf16 and bytes; `None` in f32.
pub fn teams(products: Products) -> Option<Text> {
    let (name, kind, inputs) = match products {
        Products::Single => return None,
        Products::Half => ("bf16 of teams", "k16.f32.bf16.bf16", 16),
        Products::Byte => ("bytes of teams", "k32.s32.s8.s8", 32),
    };
    // Behind the descriptors: whether sums are added to, and of floats the signs and how matrices lie.
    let how = if products == Products::Half { "%add, 1, 1, 0, 0" } else { "%add" };
    // A line of a matrix has four products' inputs; sums of a thread are so many.
    let (line, sums) = (4 * TEAM_INPUT_BYTES, 64 * TEAM_COLUMNS / 128);
    let (rows_bytes, bytes) = (64 * line, (64 + TEAM_COLUMNS) * line);
    let mut body = format!(
        "\t.shared .align 1024 .b8 tiles[{bytes}];\n\t.reg .pred %p, %add;\n\t.reg .b32 %t, %x, %i;\n\t.reg .b64 %to, %a<4>, %b<4>;\n\
         \tld.param.u64 %to, [to];\n\tld.param.u32 %t, [turns];\n\tmov.u32 %x, tiles;\n\tmov.u32 %i, %tid.x;\n\tmad.lo.u32 %i, %i, 16, %x;\n"
    );
    let mut line_of = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(body, "{text}");
    };
    for at in (0..bytes).step_by(16 * THREADS as usize) {
        line_of(format_args!("\tst.shared.v4.b32 [%i+{at}], {{0, 0, 0, 0}};"));
    }
    line_of(format_args!("\tfence.proxy.async.shared::cta;\n\tbar.sync 0;"));
    // Lines of 128 bytes whose chunks are exchanged, eight of them 1024 bytes.
    let layout = (1u64 << 62) | (u64::from((8 * line) >> 4) << 32) | (1 << 16);
    line_of(format_args!("\tshr.u32 %x, %x, 4;\n\tcvt.u64.u32 %a0, %x;\n\tor.b64 %a0, %a0, {layout};"));
    line_of(format_args!("\tadd.u64 %b0, %a0, {};", rows_bytes >> 4));
    for (part, matrix) in (1..4).flat_map(|part| [(part, "a"), (part, "b")]) {
        line_of(format_args!("\tadd.u64 %{matrix}{part}, %{matrix}0, {};", (part * TEAM_INPUT_BYTES) >> 4));
    }
    for i in 0..sums {
        line_of(format_args!("\t.reg .b32 %s{i};\n\tmov.b32 %s{i}, 0;"));
    }
    let all = (0..sums).map(|i| format!("%s{i}")).collect::<Vec<_>>().join(", ");
    line_of(format_args!("\tsetp.eq.u32 %add, 0, 0;\nLOOP:\n\twgmma.fence.sync.aligned;"));
    for part in (0..ROUNDS).map(|round| round % 4) {
        line_of(format_args!(
            "\twgmma.mma_async.sync.aligned.m64n{TEAM_COLUMNS}{kind} {{{all}}}, %a{part}, %b{part}, {how};"
        ));
    }
    line_of(format_args!("\twgmma.commit_group.sync.aligned;\n\twgmma.wait_group.sync.aligned 0;"));
    line_of(format_args!("\tsub.u32 %t, %t, 1;\n\tsetp.ne.u32 %p, %t, 0;\n\t@%p bra LOOP;\n\tmov.u32 %x, 0;"));
    for i in 0..sums {
        line_of(format_args!("\txor.b32 %x, %x, %s{i};"));
    }
    line_of(format_args!("\tsetp.eq.u32 %p, %x, 0x7ff1f1f1;\n\t@%p st.global.u32 [%to], %x;"));
    let text = module(OF_TEAMS, ".param .u64 to, .param .u32 turns", &body);
    let operations = u64::from(ROUNDS) * 2 * 64 * u64::from(TEAM_COLUMNS) * inputs / 128;
    Some(Text { arch: OF_TEAMS.0, name, text, operations })
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
        // Of a team: 64 x 256 sums.
        assert_eq!(counted("bf16 of teams") * 128, 16 * 2 * 64 * 256 * 16);
        assert_eq!(counted("bytes of teams"), 2 * counted("bf16 of teams"));
        assert_eq!(READ_BYTES as usize, read().text.matches("ld.global.v4.u32").count() * 16);
    }
}
