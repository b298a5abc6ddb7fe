//! The bytes of an output as numbers in f32, in one pass over them.

use crate::artifact::manifest::{DType, Output};
use half::{bf16, f16};
use std::sync::{Mutex, PoisonError};

/// Values of an output that a thread converts, at least: fewer are done before another has begun.
const VALUES_OF_THREAD: usize = 1 << 19;
/// Most threads that convert: memory is the limit then.
const MOST_THREADS: usize = 8;

/// The values of an output's bytes, as many as there are places. Logits of many sequences are megabytes, which so many threads convert.
pub(crate) fn to_f32(output: &Output, bytes: &[u8], values: &mut [f32], threads: usize) {
    let dtype = output.dtype;
    let threads = threads.min(MOST_THREADS).min(values.len() / VALUES_OF_THREAD);
    if threads < 2 {
        return convert(dtype, bytes, values);
    }
    let part = values.len().div_ceil(threads);
    let parts = Mutex::new(bytes.chunks(part * dtype.size_bytes()).zip(values.chunks_mut(part)));
    let work = || {
        let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
        while let Some((bytes, values)) = next() {
            convert(dtype, bytes, values);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Where the system gives no thread, those that there are do its part.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
}

fn convert(dtype: DType, bytes: &[u8], values: &mut [f32]) {
    fn each<const N: usize>(bytes: &[u8], values: &mut [f32], value: impl Fn([u8; N]) -> f32) {
        for (to, from) in values.iter_mut().zip(bytes.as_chunks().0) {
            *to = value(*from);
        }
    }
    match dtype {
        DType::F32 => each(bytes, values, f32::from_le_bytes),
        DType::F16 => each(bytes, values, |x| f16::from_le_bytes(x).to_f32()),
        DType::BF16 => each(bytes, values, |x| bf16::from_le_bytes(x).to_f32()),
        DType::I64 => each(bytes, values, |x| i64::from_le_bytes(x) as f32),
        DType::I32 => each(bytes, values, |x| i32::from_le_bytes(x) as f32),
        DType::Bool => each(bytes, values, |[x]| f32::from(x != 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::sample;

    #[test]
    fn values_are_the_same_by_any_number_of_threads() {
        let mut output = sample::manifest().outputs[0].clone();
        for (dtype, n) in
            [(DType::BF16, 5), (DType::F32, 1), (DType::I64, 3), (DType::BF16, 5 * VALUES_OF_THREAD / 2 + 3)]
        {
            output.dtype = dtype;
            let number = |i: usize| (i % 127) as f32;
            let bytes = |i: usize| match dtype {
                DType::BF16 => bf16::from_f32(number(i)).to_le_bytes().to_vec(),
                DType::I64 => (i as i64 % 127).to_le_bytes().to_vec(),
                _ => number(i).to_le_bytes().to_vec(),
            };
            let mut values = vec![-1.0; n];
            for threads in [1, 2, 7] {
                values.fill(-1.0);
                to_f32(&output, &(0..n).flat_map(bytes).collect::<Vec<_>>(), &mut values, threads);
                assert!(values.iter().enumerate().all(|(i, value)| *value == number(i)), "{n} of {dtype:?}");
            }
        }
    }
}
