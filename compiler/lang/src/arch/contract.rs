//! Attention, in one form that passes recognise.

use std::rc::Rc;

use super::expand::{Eval, Expander};
use super::symbolic::Sym;
use super::value::{Axis, AxisName, Tensor, Value};
use crate::diagnostic::{Code, Diagnostic, Span};
use crate::graph::{DType, Dim};
use crate::ops::{BinaryOp, Core};

/// The sizes of one attention.
struct Heads {
    query: Axis,
    keys: Axis,
    kv: u64,
    group: u64,
}

impl Expander {
    /// `softmax(score(scale · q·kᵀ) where mask) · v`; `rest` is mask, scores, scale, sinks, and whether there is a softmax.
    ///
    /// `q [tokens, H, D]`, `k` and `v [visible, K, D]` -> `[tokens, H, Dv]`; query head `h` reads head `h / (H / K)`.
    pub(super) fn attend(
        &mut self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rest: Vec<Option<Value>>,
        span: Span,
    ) -> Eval<Tensor> {
        let mut rest = rest.into_iter();
        let mask = rest.next().flatten().unwrap_or(Value::Bool(true));
        let scores = rest.next().flatten().unwrap_or_else(|| Value::Sym(Rc::new(Sym::Score(span))));
        let scale = match rest.next().flatten() {
            None => 1.0,
            Some(value) => match super::arith::number(&value) {
                Some(scale) => scale,
                None => {
                    return self.fail(
                        Code::WrongType,
                        span,
                        format!("the scale of attention must be a number, not {}", value.kind()),
                        "expected a number",
                    );
                }
            },
        };
        let sinks = rest.next().flatten().filter(|s| !matches!(s, Value::None));
        let softmax = match rest.next().flatten() {
            None | Some(Value::Bool(true)) => true,
            Some(Value::Bool(false)) if sinks.is_none() => false,
            Some(Value::Bool(false)) => {
                return self.fail(Code::WrongType, span, "sinks without a softmax", "nothing is shared with a sink");
            }
            Some(other) => {
                let message = format!("whether there is a softmax is true or false, not {}", other.kind());
                return self.fail(Code::WrongType, span, message, "expected a boolean");
            }
        };
        // Scores that read what is kept of keys read keys that are kept too.
        let everything = matches!(mask, Value::Bool(true)) && !matches!(&scores, Value::Sym(s) if s.reads_kept());
        let (k, v) = (self.kept(k, &q, everything), self.kept(v, &q, everything));
        let heads = self.heads(&q, &k, &v, span)?;
        if matches!(heads.keys.name, AxisName::Ragged(_)) && heads.keys.name != heads.query.name {
            let shapes = [&q, &k].map(|t| self.show_shape(&t.axes));
            let d = Diagnostic::new(Code::AxisMismatch, "keys of another axis that nothing keeps", span)
                .label(format!("queries {} and keys {}", shapes[0], shapes[1]));
            return Err(self.report(d.help("later steps bring tokens alone: keep keys and values with `cache`")));
        }
        let (kv, group) =
            (Axis::new(AxisName::KvHeads, Dim::Fixed(heads.kv)), Axis::new(AxisName::Group, Dim::Fixed(heads.group)));
        let (n, t) = (Axis::new(AxisName::Query, heads.query.size), Axis::new(AxisName::Keys, heads.keys.size));

        let grouped = self.emit(Core::Reshape, &[&q], DType::F32, vec![heads.query, kv, group, q.axes[2]], span)?;
        let full = vec![kv, group, n, t];
        let products = self.emit(
            Core::Contract { spec: "nkgd,vkd->kgnv".into() },
            &[&grouped, &k],
            DType::F32,
            full.clone(),
            span,
        )?;
        let scale = self.constant(vec![scale], DType::F32, Vec::new(), span)?;
        let scaled = self.emit(Core::Binary(BinaryOp::Mul), &[&products, &scale], DType::F32, full.clone(), span)?;

        let scored = match scores {
            Value::Sym(s) if matches!(*s, Sym::Score(_)) => scaled.clone(),
            other => {
                let scored = self.in_attention(other, &heads, &scaled, span)?;
                let scored = self.cast(scored, DType::F32, span)?;
                if scored.axes != full {
                    let shape = self.show_shape(&scored.axes);
                    return self.fail(
                        Code::AxisMismatch,
                        span,
                        format!("the scores have shape {shape}"),
                        "expected an expression over `score`",
                    );
                }
                scored
            }
        };
        let mut operands = vec![scored];
        if !matches!(mask, Value::Bool(true)) || sinks.is_some() {
            let mask = self.in_attention(mask, &heads, &scaled, span)?;
            if mask.dtype != DType::Bool {
                return self.fail(Code::WrongType, span, "the mask is made of numbers", "expected a comparison");
            }
            operands.push(self.place_axes(&mask, &full, span)?);
        }
        if let Some(sinks) = sinks {
            operands.push(self.sink(sinks, &heads, &scaled, span)?);
        }
        let weights = match &operands[..] {
            operands if softmax => {
                self.emit(Core::Softmax, &operands.iter().collect::<Vec<_>>(), DType::F32, full, span)?
            }
            [scored, mask] => {
                let zero = self.constant(vec![0.0], DType::F32, Vec::new(), span)?;
                self.emit(Core::Select, &[mask, scored, &zero], DType::F32, full, span)?
            }
            operands => operands[0].clone(),
        };
        let out = vec![heads.query, kv, group, v.axes[2]];
        let mixed =
            self.emit(Core::Contract { spec: "kgnv,vkd->nkgd".into() }, &[&weights, &v], DType::F32, out, span)?;
        self.emit(Core::Reshape, &[&mixed], DType::F32, vec![heads.query, q.axes[1], v.axes[2]], span)
    }

    /// The cached values; those of this step when every query sees every key, later ones too: then the whole sequence is one
    /// step, and no later step reads the cache.
    fn kept(&self, t: Tensor, q: &Tensor, everything: bool) -> Tensor {
        match &t.uncached {
            Some(fresh) if everything && fresh.axes.first() == q.axes.first() => (**fresh).clone(),
            _ => t,
        }
    }

    fn heads(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, span: Span) -> Eval<Heads> {
        let sizes = |t: &Tensor| match t.axes.as_slice() {
            [tokens, Axis { name: AxisName::Heads, size: Dim::Fixed(heads) }, Axis { size: Dim::Fixed(width), .. }] => {
                Some((*tokens, *heads, *width))
            }
            _ => None,
        };
        match (sizes(q), sizes(k), sizes(v)) {
            (Some((query, h, dq)), Some((keys, hk, dk)), Some((values, hv, _)))
                if dq == dk && hk == hv && keys == values && h % hk == 0 =>
            {
                Ok(Heads { query, keys, kv: hk, group: h / hk })
            }
            _ => {
                let shapes = [q, k, v].map(|t| self.show_shape(&t.axes));
                let d = Diagnostic::new(Code::AxisMismatch, "queries, keys and values do not fit together", span)
                    .label(format!("the shapes are {}", shapes.join(", ")));
                Err(self.report(d.help("expected q [tokens, H, D], k [visible, K, D] and v [visible, K, Dv] with H a multiple of K; `split` makes heads")))
            }
        }
    }

    /// A mask or a score over the axes of attention: `[K, G, queries, keys]`, those that it depends on.
    fn in_attention(&mut self, value: Value, heads: &Heads, score: &Tensor, span: Span) -> Eval<Tensor> {
        let rename = |t: Tensor, name| Tensor { axes: vec![Axis::new(name, t.axes[0].size)], ..t };
        let sym = match value {
            Value::Sym(s) => s,
            other => Rc::new(Sym::Tensor(self.tensor(other, span, None)?)),
        };
        self.place_sym(&sym, span, &mut |this, leaf| match leaf {
            Sym::QPos => this.positions(heads.query, span).map(|t| rename(t, AxisName::Query)),
            Sym::KPos(_) => this.positions(heads.keys, span).map(|t| rename(t, AxisName::Keys)),
            Sym::Score(_) => Ok(score.clone()),
            Sym::Head(_) => {
                let index = this.positions(Axis::new(AxisName::Heads, Dim::Fixed(heads.kv * heads.group)), span)?;
                this.by_head(index, heads, span)
            }
            Sym::Tensor(t) => this.over_heads(t.clone(), heads, span),
            Sym::Take(t, _) => this.rows_over_heads(t, heads, span),
            _ => Err(this.report(Diagnostic::new(Code::Misplaced, "not a mask", span))),
        })
    }

    /// What takes part in the softmax without a value, as `[K, G, queries, 1]`: given as a number, `[H]`, `[tokens, H]` or an expression over these.
    fn sink(&mut self, value: Value, heads: &Heads, score: &Tensor, span: Span) -> Eval<Tensor> {
        let sinks = match value {
            Value::Sym(sym) => Value::Sym(sym),
            other => {
                let mut t = self.tensor(other, span, None)?;
                let (shape, count) = (self.show_shape(&t.axes), heads.kv * heads.group);
                // One number a head, whether or not anything made an axis of heads of it.
                let by_head = t.axis(AxisName::Heads).is_some();
                if let Some(last) = t.axes.last_mut().filter(|a| !by_head && a.name == AxisName::Width) {
                    if last.size == Dim::Fixed(count) {
                        last.name = AxisName::Heads;
                    } else if !last.is_one() {
                        let message = format!("sinks of shape {shape} in an attention of {count} heads");
                        return self.fail(Code::AxisMismatch, span, message, "expected one number a head");
                    }
                }
                Value::Tensor(t)
            }
        };
        let t = self.in_attention(sinks, heads, score, span)?;
        let t = self.cast(t, DType::F32, span)?;
        if t.axis(AxisName::Keys).is_some() {
            let d = Diagnostic::new(Code::AxisMismatch, "sinks that differ from key to key", span)
                .label("expected a number a head, for all keys");
            return Err(self.report(d.help("a sink takes part in the softmax as one key more, which has no value")));
        }
        let one = Axis::new(AxisName::Keys, Dim::Fixed(1));
        let [kv, group] = [(AxisName::KvHeads, heads.kv), (AxisName::Group, heads.group)]
            .map(|(name, n)| Axis::new(name, Dim::Fixed(n)));
        let full = [kv, group, Axis::new(AxisName::Query, heads.query.size), one];
        let t = self.place_axes(&t, &full[..3], span)?;
        let axes = [&t.axes[..], &[one]].concat();
        self.emit(Core::Reshape, &[&t], DType::F32, axes, span)
    }

    /// `[H]` as `[K, G]`.
    fn by_head(&mut self, t: Tensor, heads: &Heads, span: Span) -> Eval<Tensor> {
        let mut axes = vec![
            Axis::new(AxisName::KvHeads, Dim::Fixed(heads.kv)),
            Axis::new(AxisName::Group, Dim::Fixed(heads.group)),
        ];
        axes.extend(&t.axes[1..]);
        let dtype = t.dtype;
        self.emit(Core::Reshape, &[&t], dtype, axes, span)
    }

    /// Rows that queries bring or that are kept of keys, `[tokens, H, M]`, as `[K, G, queries or keys, M]`.
    fn rows_over_heads(&mut self, t: &Tensor, heads: &Heads, span: Span) -> Eval<Tensor> {
        let shape = self.show_shape(&t.axes);
        let fits = match t.axes.as_slice() {
            [_, last] => last.size.fixed().is_some(),
            [_, of_heads, last] => of_heads.name == AxisName::Heads && last.size.fixed().is_some(),
            _ => false,
        };
        if !fits {
            let message = format!("elements of {shape} at positions of attention");
            let label = "expected [tokens, n] or [tokens, heads, n], or what is kept of such a tensor";
            return self.fail(Code::AxisMismatch, span, message, label);
        }
        let mut rows = t.clone();
        let beside = self.other_axis();
        if let Some(last) = rows.axes.last_mut() {
            last.name = beside;
        }
        self.over_heads_beside(rows, Some(beside), heads, span)
    }

    /// Elements of rows `[.., queries or keys, M]` at an index over positions, as `[K, G, queries, keys]`, of heads those that either has.
    pub(super) fn take_at(&mut self, rows: &Tensor, index: Tensor, span: Span) -> Eval<Tensor> {
        if index.dtype != DType::I64 {
            return self.fail(Code::WrongType, span, "`take` at numbers that are no integers", "expected i64 indices");
        }
        let one = |name| Axis::new(name, Dim::Fixed(1));
        let of = |name| rows.axis(name).or_else(|| index.axis(name));
        let lead: Vec<Axis> = [AxisName::KvHeads, AxisName::Group].into_iter().filter_map(of).collect();
        let [query, keys] = [AxisName::Query, AxisName::Keys].map(|name| of(name).unwrap_or(one(name)));
        let (own, other) = if rows.axis(AxisName::Query).is_some() { (query, keys) } else { (keys, query) };
        let width = rows.axes.last().copied().unwrap_or(own);
        let table = [&lead[..], &[own]].concat();
        let rows = self.filled(rows, &[&table[..], &[width]].concat(), span)?;
        let index = self.filled(&index, &[&table[..], &[other]].concat(), span)?;
        let taken = self.emit(Core::Take, &[&rows, &index], rows.dtype, index.axes.clone(), span)?;
        self.place_axes(&taken, &[&lead[..], &[query, keys]].concat(), span)
    }

    /// A tensor with all of these axes in their order, repeated along those that it lacks.
    fn filled(&mut self, t: &Tensor, axes: &[Axis], span: Span) -> Eval<Tensor> {
        let placed = self.place_axes(t, axes, span)?;
        if placed.axes == axes {
            return Ok(placed);
        }
        self.emit(Core::Broadcast, &[&placed], placed.dtype, axes.to_vec(), span)
    }

    /// A tensor read at the positions of attention: its tokens are the queries, what it keeps is the keys.
    fn over_heads(&mut self, t: Tensor, heads: &Heads, span: Span) -> Eval<Tensor> {
        self.over_heads_beside(t, None, heads, span)
    }

    /// The same of a tensor with an axis besides those of attention.
    fn over_heads_beside(
        &mut self,
        mut t: Tensor,
        beside: Option<AxisName>,
        heads: &Heads,
        span: Span,
    ) -> Eval<Tensor> {
        let shape = self.show_shape(&t.axes);
        let repeats = |a: &Axis| a.is_one() && a.name != AxisName::Heads && Some(a.name) != beside;
        if t.axes.iter().any(repeats) {
            let axes = t.axes.iter().filter(|a| !repeats(a)).copied().collect();
            t = self.emit(Core::Reshape, &[&t], t.dtype, axes, span)?;
        }
        for axis in &mut t.axes {
            axis.name = match axis.name {
                AxisName::Heads | AxisName::KvHeads | AxisName::Group => axis.name,
                name if Some(name) == beside => name,
                name if name == heads.query.name => AxisName::Query,
                name if name == heads.keys.name => AxisName::Keys,
                _ => {
                    return self.fail(
                        Code::Misplaced,
                        span,
                        format!("a tensor of shape {shape} in a mask or a score"),
                        "expected axes of tokens and heads",
                    );
                }
            };
        }
        if let Some(at) = t.axes.iter().position(|a| a.name == AxisName::Heads) {
            if t.axes[at].size != Dim::Fixed(heads.kv * heads.group) {
                return self.fail(
                    Code::AxisMismatch,
                    span,
                    format!("a tensor of shape {shape} in an attention of {} heads", heads.kv * heads.group),
                    "another number of heads",
                );
            }
            if at > 0 {
                let perm: Vec<usize> = std::iter::once(at).chain((0..t.axes.len()).filter(|i| *i != at)).collect();
                let axes = perm.iter().map(|i| t.axes[*i]).collect();
                let dtype = t.dtype;
                t = self.emit(Core::Transpose { perm }, &[&t], dtype, axes, span)?;
            }
            return self.by_head(t, heads, span);
        }
        Ok(t)
    }
}

#[cfg(test)]
mod tests {
    use crate::arch::testing::{codes, model};
    use crate::diagnostic::Code;

    fn attention(call: &str) -> String {
        format!(
            "mask causal = k_pos <= q_pos\nmodel(x: f32[tokens, 8]) {{ q = split(x, 4) k = split(x, 2) return {{y: {call}}} }}"
        )
    }

    #[test]
    fn one_form_of_attention() {
        let call = "attend(split(x, 4), cache(split(join(x), 4)), cache(split(x, 4)), causal, scale = 0.5)";
        let text = model(&attention(call)).program.to_string();
        for part in [
            "\"nkgd,vkd->kgnv\"",
            "softmax",
            "\"kgnv,vkd->nkgd\"",
            "f32[4, 1, tokens, visible(tokens)]",
            "bool[tokens, visible(tokens)]",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn what_sees_everything_keeps_nothing() {
        let made = model(&attention("attend(k, cache(k), cache(k))"));
        assert_eq!(made.arch.caches, []);
        let made = model(&attention("attend(k, cache(k), cache(k), causal)"));
        assert_eq!(made.arch.caches, [("k".to_string(), vec![2, 4]), ("k~1".to_string(), vec![2, 4])]);
    }

    #[test]
    fn scores_may_differ_by_head() {
        let text =
            model(&attention("attend(k, cache(k), cache(k), causal, score - (q_pos - k_pos) * exp(-(head + 1)))"))
                .program
                .to_string();
        assert!(text.contains("f32[2, 1, tokens, visible(tokens)]"), "{text}");
    }

    #[test]
    fn keys_of_another_axis_are_kept() {
        let across = |keys: &str| {
            format!(
                "model(s: f32[source, 8], x: f32[tokens, 16]) {{ k = split(s, 2) q = split(x, 4) return {{y: attend(q, {keys}, {keys})}} }}"
            )
        };
        let made = model(&across("cache(k)"));
        assert_eq!(made.program.axes, ["tokens", "source"]);
        assert_eq!(made.arch.caches.len(), 2);
        assert!(made.program.to_string().contains("f32[2, 2, tokens, visible(source)]"), "{}", made.program);
        assert_eq!(codes(&across("k")), [Code::AxisMismatch]);
    }

    #[test]
    fn attention_that_does_not_fit() {
        assert_eq!(codes(&attention("attend(q, k, k)")), [Code::AxisMismatch]);
        assert_eq!(codes(&attention("attend(x, x, x)")), [Code::AxisMismatch]);
        // One of several numbers is read at integers, in attention, of tokens or of what is kept of them.
        for (expression, code) in [
            ("attend(k, cache(k), cache(k), true, score + take(cache(k), 0.5 * k_pos))", Code::WrongType),
            ("attend(k, cache(k), cache(k), true, score + take(q, k_pos))", Code::AxisMismatch),
            ("q * take(cache(q), q_pos)", Code::Misplaced),
            ("q * take(q, k_pos)", Code::Misplaced),
        ] {
            assert_eq!(codes(&attention(expression)), [code], "{expression}");
        }
        assert_eq!(codes(&attention("attend(k, k, k, q_pos - k_pos)")), [Code::WrongType]);
        assert_eq!(codes(&attention("attend(k, k, k, scale = x)")), [Code::WrongType]);
        assert_eq!(codes(&attention("attend(k, k)")), [Code::MissingOption]);
        assert_eq!(codes(&attention("attend(k, k, k, causal, softmax = 1)")), [Code::WrongType]);
        assert_eq!(codes(&attention("attend(k, k, k, causal, sinks = 1, softmax = false)")), [Code::WrongType]);
    }

    #[test]
    fn sinks_are_one_number_a_head() {
        let with = |sinks: &str| format!("attend(q, cache(q), cache(q), causal, sinks = {sinks})");
        let made = |sinks: &str| model(&attention(&with(sinks))).program.to_string();
        for (sinks, shape) in [
            ("0", ": f32[1]\n"),
            ("[0, 1, 2, 3]", "f32[4, 1, 1, 1]"),
            ("sum(q)", "f32[4, 1, tokens, 1]"),
            ("q_pos * 0.1", "f32[tokens, 1]"),
            ("head - q_pos", "f32[4, 1, tokens, 1]"),
        ] {
            assert!(made(sinks).contains(shape), "{sinks}\n{}", made(sinks));
        }
        let without = model(&attention("attend(q, cache(q), cache(q), causal)")).program.to_string();
        assert_eq!(made("none"), without);
        for sinks in ["[0, 1]", "x", "k_pos", "score"] {
            assert_eq!(codes(&attention(&with(sinks))), [Code::AxisMismatch], "{sinks}");
        }
        assert_eq!(codes(&attention(&with("q"))), [Code::Misplaced]);
        assert_eq!(codes(&attention(&with("'one'"))), [Code::WrongType]);
    }
}
