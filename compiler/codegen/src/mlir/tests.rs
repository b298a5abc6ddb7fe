//! Generated kernels, compiled and called.
use super::pipeline::Lowering;
use super::writer::{Elem, Ty, Val, Writer};
use crate::target::cpu::isa::Isa;
use crate::target::cpu::link::link;
use crate::target::Keep;
use crate::target::cpu::mlir_to_object::ObjectWriter;

fn unary_kernel(lanes: u32, f: impl Fn(&mut Writer, Val) -> Val) -> String {
    let (mut w, p) = Writer::kernel("k");
    let input = w.load(Ty::scalar(Elem::Ptr), p.args);
    let ty = Ty::of(Elem::F32, lanes);
    w.for_loop(p.tile_begin, p.tile_end, i64::from(lanes.max(1)), &[], |w, i, _| {
        let b = w.shl(i, 2);
        let at = w.offset(input, b);
        let x = w.load(ty, at);
        let y = f(w, x);
        let out = w.offset(p.scratch, b);
        w.store(y, out);
        Ok(vec![])
    }).unwrap();
    w.finish()
}

#[test]
fn smoke() {
    let isa = Isa::parse("cpu:x86-64-v3").unwrap();
    let low = Lowering::new();
    let ow = ObjectWriter::new(&isa).unwrap();
    for (name, f) in [("exp", Writer::exp as fn(&mut Writer, Val) -> Val), ("sin", Writer::sin), ("log", Writer::log), ("erf", Writer::erf)] {
        let text = unary_kernel(8, f);
        let c = low.lower(name, &text, |m| ow.compile(name, m, Keep { llvm: false, assembly: true })).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let image = link(&[("k".into(), c.object)], "k").unwrap();
        eprintln!("{name}: {} bytes {:?}", image.bytes.len(), image.entries);
    }
}
