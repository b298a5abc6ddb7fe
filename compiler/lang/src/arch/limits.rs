//! What bounds an expansion: no description, however short, keeps the compiler busy for long or fills the memory.

use std::rc::Rc;

use super::expand::{Eval, Expander, Failed};
use super::symbolic::Sym;
use super::value::Value;
use crate::diagnostic::{Code, MAX_SHOWN, Span};

/// Longest list of values or of modules.
const MAX_LIST: usize = 1 << 14;
/// Most values of a list of lists.
const MAX_NESTED: usize = 1 << 16;
/// Deepest list of lists that goes from module to module.
const MAX_STRUCTURE: usize = 32;
/// Most expressions evaluated and values listed; a model of 128 layers takes about a million.
const MAX_WORK: u64 = 20_000_000;
/// Most operations written out, before equal ones become one; a model of 128 layers takes some ten thousand.
const MAX_OPERATIONS: u64 = 1_000_000;
/// Most operations of one body.
const MAX_BODY: usize = 100_000;
/// Largest expression over positions.
const MAX_POSITIONAL: usize = 4096;
/// One more than the largest size of a dimension.
pub(super) const MAX_SIZE: i64 = 1 << 40;
/// Most elements of a tensor, ragged axes left out.
const MAX_ELEMENTS: u64 = 1 << 48;
/// Things said about one card after which expansion stops; the report shows all but the last.
pub(super) const MAX_DIAGNOSTICS: usize = MAX_SHOWN + 1;
/// Unknown names for which a similar one is looked for.
pub(super) const MAX_SUGGESTIONS: usize = 20;

impl Expander {
    /// Reports a limit that ends the expansion.
    fn give_up<T>(&mut self, span: Span, message: String) -> Eval<T> {
        let result = self.fail(Code::TooLarge, span, message, "given up here");
        self.gave_up = true;
        result
    }

    /// Counts work, so that no description keeps the compiler busy for ever.
    pub(super) fn spend(&mut self, work: u64, span: Span) -> Eval<()> {
        if self.gave_up {
            return Err(Failed);
        }
        self.work = self.work.saturating_add(work);
        if self.work <= MAX_WORK {
            return Ok(());
        }
        self.give_up(span, format!("more than {MAX_WORK} values and steps"))
    }

    /// A list of so many elements may be made.
    pub(super) fn check_list(&mut self, len: usize, span: Span) -> Eval<()> {
        if len > MAX_LIST {
            let message = format!("a list of {len} elements; a list has at most {MAX_LIST}");
            return self.fail(Code::TooLarge, span, message, "too long");
        }
        self.spend(len as u64, span)
    }

    /// A list or a mapping, if it is of a sensible size with all that lies in it.
    pub(super) fn nested(&mut self, value: Value, span: Span) -> Eval {
        if value.size_within(MAX_NESTED).is_none() {
            let message = format!("more than {MAX_NESTED} values, one inside the other");
            return self.fail(Code::TooLarge, span, message, "too large");
        }
        Ok(value)
    }

    /// What a module gives to the next one, if it is of a sensible size and depth.
    pub(super) fn bounded(&mut self, value: Value, span: Span) -> Eval {
        if value.is_deeper_than(MAX_STRUCTURE) {
            let message = format!("lists, tuples and mappings more than {MAX_STRUCTURE} deep");
            return self.fail(Code::TooLarge, span, message, "too deep");
        }
        self.spend(value.size_within(MAX_NESTED).unwrap_or(MAX_NESTED) as u64, span)?;
        self.nested(value, span)
    }

    /// An expression over positions, if it is of a sensible size: shared parts count each time, for each is placed.
    pub(super) fn positional(&mut self, sym: Sym, span: Span) -> Eval {
        if sym.size_within(MAX_POSITIONAL).is_none() {
            let message = format!("an expression over positions of more than {MAX_POSITIONAL} parts");
            return self.fail(Code::TooLarge, span, message, "too large");
        }
        Ok(Value::Sym(Rc::new(sym)))
    }

    /// Counts an operation before it is written out.
    pub(super) fn count_operation(&mut self, span: Span) -> Eval<()> {
        self.n_operations += 1;
        if self.n_operations > MAX_OPERATIONS {
            return self.give_up(span, format!("more than {MAX_OPERATIONS} operations"));
        }
        if self.builders.top().graph.len() >= MAX_BODY {
            return self.give_up(span, format!("more than {MAX_BODY} operations in one body"));
        }
        Ok(())
    }

    /// A tensor of these fixed sizes may be made.
    pub(super) fn check_elements(&mut self, dims: &[u64], span: Span) -> Eval<()> {
        if dims.iter().try_fold(1, |n: u64, d| n.checked_mul(*d)).is_some_and(|n| n <= MAX_ELEMENTS) {
            return Ok(());
        }
        let shown: Vec<String> = dims.iter().map(u64::to_string).collect();
        self.fail(Code::TooLarge, span, format!("a tensor of shape [{}]", shown.join(", ")), "too many elements")
    }
}

#[cfg(test)]
mod tests {
    use crate::arch::testing::{card, codes, expand};
    use crate::diagnostic::{Code, MAX_SHOWN};

    #[test]
    fn work_is_bounded() {
        let model = |body: &str| format!("model(x: f32[tokens, 4]) {{ {body} }}");
        let doubled = |name: &str, first: &str, by: &dyn Fn(&str) -> String| {
            let mut text = format!("{name}0{first}\n");
            for i in 1..40 {
                text += &format!("{name}{i}{}\n", by(&format!("{name}{}", i - 1)));
            }
            text
        };
        let functions = doubled("f", "(x) = x * 2", &|f| format!("(x) = {f}({f}(x)) + 1"));
        let positions = doubled("p", " = q_pos", &|p| format!(" = {p} + {p}"));
        let lists = doubled("l", " = [1]", &|l| format!(" = [{l}, {l}]"));
        let sizes = doubled("s", "(n) = n", &|s| format!("(n) = {s}(n) + {s}(n)"));
        for wiring in [
            model("return {y: x * sum([i for i in 0..20000])}"),
            model("l(h) { return h * 2 } ls = [l for i in 0..5000] return {y: ls(x)}"),
            functions + &model("return {y: f39(x)}"),
            positions + &model("return {y: x * p39}"),
            lists + &model("return {y: x * (if l39 == l38 then 1 else 2)}"),
            sizes + &model("return {y: x * s39(1)}"),
        ] {
            assert_eq!(codes(&wiring), [Code::TooLarge], "{wiring}");
        }
    }

    #[test]
    fn what_is_wrong_is_bounded() {
        let names: String = (0..1000).map(|i| format!("a{i} = lost{i}\n")).collect();
        let text = card("sizes: {}\n", &format!("{names}model(x: f32[tokens, 4]) {{ return {{y: x}} }}"));
        let report = expand(&text, &Default::default()).expect_err("it is wrong");
        assert_eq!(report.diagnostics.len(), MAX_SHOWN + 1);
        assert_eq!(report.diagnostics.last().map(|d| d.code), Some(Code::TooLarge));
    }
}
