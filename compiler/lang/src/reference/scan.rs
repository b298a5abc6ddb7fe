//! A step for each token in order, with the states that the token before left.

use std::rc::Rc;

use super::Result;
use super::eval::{Step, concat};
use super::float::Float;
use super::tensor::{Value, map_elements};
use crate::graph::{Graph, Type};
use crate::ops::core::scan::state_paths;

impl<F: Float> Step<'_, F> {
    /// The results of a scan. `x` are the starts of its states, then what its step is given of each token or as it is.
    pub(super) fn scan(
        &self,
        (path, states, step): (&str, usize, &Graph),
        x: &[Rc<Value<F>>],
        types: &[Type],
        at: &str,
    ) -> Result<Vec<Rc<Value<F>>>> {
        let (starts, values) = x.split_at(states.min(x.len()));
        let paths: Vec<String> = state_paths(path, states).collect();
        let before = |(path, start): (&String, &Rc<Value<F>>)| self.old_caches.get(path).unwrap_or(start).clone();
        let mut state: Vec<Rc<Value<F>>> = paths.iter().zip(starts).map(before).collect();
        let is_token: Vec<bool> = values
            .iter()
            .zip(&step.params()[states..])
            .map(|(v, p)| v.dims.len() > step.ty(p.value).dims.len())
            .collect();
        let dims: Vec<Vec<usize>> = types.iter().map(|ty| self.sizes(&ty.dims)).collect();
        let n = dims.first().and_then(|d| d.first()).copied().unwrap_or(0);
        let mut results: Vec<Vec<Rc<Value<F>>>> = vec![Vec::with_capacity(n); types.len()];
        for token in 0..n {
            let given = values
                .iter()
                .zip(&is_token)
                .map(|(v, of_token)| if *of_token { Rc::new(row(v, token)) } else { v.clone() });
            let args: Vec<Rc<Value<F>>> = state.iter().cloned().chain(given).collect();
            let mut outputs = self.graph(step, &args, at)?;
            for (list, output) in results.iter_mut().zip(outputs.split_off(states)) {
                let dims = [&[1], &output.dims[..]].concat();
                list.push(Rc::new(Value { dims, data: output.data.clone() }));
            }
            state = outputs;
        }
        if n > 0 {
            self.caches.borrow_mut().extend(paths.into_iter().zip(state));
        }
        let mut joined = Vec::with_capacity(types.len());
        for ((list, dims), ty) in results.into_iter().zip(dims).zip(types) {
            let value = if list.is_empty() { Value::filled(0.0, ty.dtype, dims) } else { concat(0, &list, dims) };
            joined.push(Rc::new(value));
        }
        Ok(joined)
    }
}

/// Element `i` of the first dimension.
fn row<F: Float>(x: &Value<F>, i: usize) -> Value<F> {
    let dims = x.dims[1..].to_vec();
    let n: usize = dims.iter().product();
    let data = map_elements!(&x.data, v => v[i * n..(i + 1) * n].to_vec());
    Value { dims, data }
}
