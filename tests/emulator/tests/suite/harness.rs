//! What the tests share: random values, kernels around single instructions, launches with buffers.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its case up has failed")]

use xfc_emulator::{Fault, FaultKind, Launch, Memory, Module, Stats, launch};

/// The start of every text.
pub(crate) const HEADER: &str = ".version 8.6\n.target sm_90a\n.address_size 64\n";

/// xorshift64*: the same values in each run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    /// A value that often is near a limit.
    pub(crate) fn bits(&mut self, bits: u32) -> u64 {
        let all = u64::MAX >> (64 - bits);
        let value = self.next();
        let edges = [0, 1, 2, all, all - 1, all >> 1, (all >> 1) + 1, 31, 32, 33, 64];
        if self.below(4) == 0 { edges[self.below(edges.len() as u64) as usize] & all } else { value & all }
    }

    /// A float of moderate size, or now and then a special one.
    pub(crate) fn f32(&mut self) -> f32 {
        let specials =
            [0.0, -0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MIN_POSITIVE, 1e-41, -1e-44, f32::MAX];
        match self.below(8) {
            0 => specials[self.below(specials.len() as u64) as usize],
            1 => f32::from_bits(self.next() as u32),
            _ => self.unit() * 16.0,
        }
    }

    /// Between -1 and 1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// A kernel with the parameters `in`, `out` (addresses; in `%in`, `%out`) and the thread in `%t`; registers `%a0..` of 64 bits,
/// `%r0..` of 32, `%h0..` of 16, `%f0..` and `%d0..` of floats, `%p0..` of predicates.
pub(crate) fn kernel(body: &str) -> String {
    kernel_with("", body)
}

/// Likewise, with declarations of the module before it.
pub(crate) fn kernel_with(declarations: &str, body: &str) -> String {
    format!(
        "{HEADER}{declarations}
.visible .entry k(.param .u64 p_in, .param .u64 p_out)
{{
.reg .b64 %in, %out, %slot, %a<16>;
.reg .b32 %t, %r<32>;
.reg .b16 %h<16>;
.reg .f32 %f<32>;
.reg .f64 %d<8>;
.reg .pred %p<8>;
ld.param.u64 %in, [p_in];
ld.param.u64 %out, [p_out];
mov.u32 %t, %tid.x;
{body}
ret;
}}
"
    )
}

/// Where a launch of `kernel` left its output, and its counts.
pub(crate) struct Done {
    pub(crate) out: Vec<u8>,
    pub(crate) stats: Stats,
}

/// Runs one block.
pub(crate) fn run(text: &str, threads: u32, input: &[u8], out_bytes: usize) -> Result<Done, Box<Fault>> {
    run_grid(text, [1, 1, 1], [threads, 1, 1], 0, input, out_bytes)
}

/// Runs any launch of `kernel`.
pub(crate) fn run_grid(
    text: &str,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    input: &[u8],
    out_bytes: usize,
) -> Result<Done, Box<Fault>> {
    dump(text);
    let module = Module::parse(text).unwrap_or_else(|error| panic!("{error}"));
    let mut memory = Memory::new();
    let (from, to) = (memory.alloc(input.len() as u64, 256), memory.alloc(out_bytes as u64, 256));
    memory.write(from, input).unwrap();
    let params: Vec<u8> = [from, to].iter().flat_map(|p| p.to_le_bytes()).collect();
    let mut how = Launch::new(grid, block, &params).with_shared(dynamic_shared);
    how.step_limit = 1_000_000;
    let stats = launch(&module, "k", &mut memory, &how)?;
    let mut out = vec![0; out_bytes];
    memory.read(to, &mut out).unwrap();
    Ok(Done { out, stats })
}

/// With XFC_PTX_DUMP=folder, writes what is run to files, for a look at what other assemblers say to it.
pub(crate) fn dump(text: &str) {
    if let Ok(folder) = std::env::var("XFC_PTX_DUMP") {
        let name = text.bytes().fold(0u64, |hash, b| hash.wrapping_mul(31).wrapping_add(b.into()));
        std::fs::write(format!("{folder}/{name:016x}.ptx"), text).unwrap();
    }
}

/// The fault that a body must end with.
pub(crate) fn fault(body: &str, threads: u32) -> Box<Fault> {
    match run(&kernel(body), threads, &[0; 4096], 4096) {
        Err(fault) => fault,
        Ok(_) => panic!("no fault: {body}"),
    }
}

/// The kind of it, and the text of its line.
pub(crate) fn fault_kind(body: &str, threads: u32) -> (FaultKind, String) {
    let fault = fault(body, threads);
    (fault.kind.clone(), fault.text)
}

pub(crate) fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

pub(crate) fn longs(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect()
}

pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    words(bytes).into_iter().map(f32::from_bits).collect()
}

pub(crate) fn bytes_of<T: Copy, const N: usize>(values: &[T], to: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&v| to(v)).collect()
}

/// Runs one instruction on each triple of sources. `types` are the letters of the result and the sources: `h` 16 bits, `r` 32, `f` f32,
/// `a` 64, `d` f64, `p` a predicate; the instruction names them `D`, `A`, `B`, `C`.
pub(crate) fn each(instruction: &str, types: &str, sources: &[[u64; 3]]) -> Vec<u64> {
    let width = |letter: char| match letter {
        'h' => "b16",
        'r' | 'f' => "b32",
        _ => "b64",
    };
    let letters: Vec<char> = types.chars().collect();
    let mut body = "mov.u32 %r31, %ctaid.x;\nmad.lo.u32 %r31, %r31, 128, %t;\nmul.wide.u32 %slot, %r31, 24;\nadd.s64 %slot, %slot, %in;\n".to_owned();
    let mut text = format!(" {instruction};");
    for (index, (&letter, name)) in letters[1..].iter().zip(["A", "B", "C"]).enumerate() {
        let offset = 8 * index;
        let number = index + 1;
        if letter == 'p' {
            body += &format!("ld.global.b32 %r30, [%slot+{offset}];\nsetp.ne.u32 %p{number}, %r30, 0;\n");
        } else {
            body += &format!("ld.global.{} %{letter}{number}, [%slot+{offset}];\n", width(letter));
        }
        text = text.replace(&format!(" {name}"), &format!(" %{letter}{number}"));
    }
    text = text.replace(" D", &format!(" %{}0", letters[0]));
    let store = match letters[0] {
        'p' => "selp.b64 %a0, 1, 0, %p0;\nst.global.b64 [%slot], %a0;".to_owned(),
        letter => format!("st.global.{} [%slot], %{letter}0;", width(letter)),
    };
    body += &format!("{text}\nmul.wide.u32 %slot, %r31, 8;\nadd.s64 %slot, %slot, %out;\n{store}");
    let input: Vec<u8> = sources.iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(sources.len() % 128, 0);
    let done = run_grid(&kernel(&body), [sources.len() as u32 / 128, 1, 1], [128, 1, 1], 0, &input, sources.len() * 8);
    longs(&done.unwrap_or_else(|f| panic!("{f}")).out)
}
