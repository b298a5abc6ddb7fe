//! Equations to the tree of [`ast`](super::ast).
//!
//! Given text and a map from its bytes to a file's, gives the items that parse and a diagnostic for each top-level item that does
//! not: an item starts at the margin, so that one mistake hides none of the others.

use std::num::NonZeroUsize;
use std::sync::Arc;

use pest::Parser;
use pest::error::{Error, ErrorVariant};
use pest::iterators::Pair;

use super::ast::{Binding, Expr, ExprKind, Function, Ident, Item, Module, Param, TypeExpr};
use super::syntax_error::{syntax_error, too_deep};
use super::xf_exprs::unquote;
use crate::diagnostic::{Code, Diagnostic, Span};
use crate::graph::DType;

#[derive(pest_derive::Parser)]
#[grammar = "spec/xf.pest"]
struct XfParser;

/// Deepest nesting of brackets and of expressions.
pub(super) const MAX_DEPTH: usize = 64;

/// Most rules tried for one top-level item: hundreds of times what the largest equations need.
const MAX_CALLS: usize = 4_000_000;

/// Where the bytes of a text lie in the file it was taken from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The source of the spans.
    pub source: u32,
    /// `(offset in the text, offset in the file)` of each line, rising. Empty: the text is the file.
    pub lines: Vec<(usize, usize)>,
}

impl Origin {
    fn span(&self, start: usize, end: usize) -> Span {
        Span { source: self.source, start: self.place(start) as u32, end: self.place(end) as u32 }
    }

    fn place(&self, offset: usize) -> usize {
        let line = self.lines.partition_point(|(start, _)| *start <= offset);
        match line.checked_sub(1).and_then(|l| self.lines.get(l)) {
            Some((text, file)) => file + (offset - text),
            None => offset,
        }
    }
}

/// The items of a text.
pub fn parse_items(text: &str, origin: &Origin, diagnostics: &mut Vec<Diagnostic>) -> Vec<Item> {
    let mut items = Vec::new();
    for (start, chunk) in chunks(text) {
        let mut reader = Reader { origin, start, diagnostics };
        if let Some(offset) = too_deep(chunk) {
            reader.too_deep(offset);
            continue;
        }
        // Brackets that never close make a parser without memory try again at each level.
        pest::set_call_limit(NonZeroUsize::new(MAX_CALLS));
        match XfParser::parse(Rule::items, chunk) {
            Err(Error { variant: ErrorVariant::CustomError { .. }, .. }) => reader.too_tangled(chunk),
            Ok(pairs) => items.extend(pairs.flat_map(Pair::into_inner).filter_map(|pair| reader.item(pair))),
            Err(error) => {
                let found = syntax_error(chunk, &error);
                let span = |from, to| reader.origin.span(start + from, start + to);
                let mut d = Diagnostic::new(Code::Syntax, found.message, span(found.start, found.end))
                    .label(found.label)
                    .maybe_help(found.help);
                if let Some(opened) = found.opened {
                    d = d.other(span(opened, opened + 1), "opened here");
                }
                reader.diagnostics.push(d);
            }
        }
    }
    items
}

/// The first bracket that opens and is never closed, by a count that knows nothing of strings.
fn unclosed(text: &str) -> Option<usize> {
    let mut open = Vec::new();
    for (offset, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => open.push(offset),
            ')' | ']' | '}' => {
                open.pop();
            }
            _ => {}
        }
    }
    open.first().copied()
}

/// The text cut before each line that starts an item at the margin, with offsets.
fn chunks(text: &str) -> Vec<(usize, &str)> {
    let mut starts = vec![0];
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        if line.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && offset > 0 {
            starts.push(offset);
        }
        offset += line.len();
    }
    starts.push(text.len());
    starts.windows(2).map(|w| (w[0], &text[w[0]..w[1]])).collect()
}

pub(super) struct Reader<'a> {
    origin: &'a Origin,
    start: usize,
    pub(super) diagnostics: &'a mut Vec<Diagnostic>,
}

impl Reader<'_> {
    pub(super) fn span(&self, pair: &Pair<'_, Rule>) -> Span {
        let span = pair.as_span();
        let trimmed = span.as_str().trim_end().len();
        self.origin.span(self.start + span.start(), self.start + span.start() + trimmed)
    }

    pub(super) fn too_deep(&mut self, offset: usize) {
        let span = self.origin.span(self.start + offset, self.start + offset + 1);
        self.diagnostics.push(Diagnostic::new(Code::TooLarge, format!("nested deeper than {MAX_DEPTH} levels"), span));
    }

    /// The grammar gave up: the place is the first bracket that is not closed.
    fn too_tangled(&mut self, chunk: &str) {
        let offset = unclosed(chunk).unwrap_or(0);
        let span = self.origin.span(self.start + offset, self.start + offset + 1);
        let message = "too many brackets are open to read this equation";
        self.diagnostics.push(Diagnostic::new(Code::TooLarge, message, span).label("this one is not closed"));
    }

    pub(super) fn ident(&self, pair: &Pair<'_, Rule>) -> Ident {
        Ident { name: pair.as_str().into(), span: self.span(pair) }
    }

    fn item(&mut self, pair: Pair<'_, Rule>) -> Option<Item> {
        let rule = pair.as_rule();
        let mut inner = pair.into_inner().peekable();
        match rule {
            Rule::binding => {
                let mut names = Vec::new();
                while let Some(p) = inner.next_if(|p| p.as_rule() == Rule::ident) {
                    names.push(self.ident(&p));
                }
                let value = self.expr(inner.next()?);
                Some(Item::Binding(Arc::new(Binding { names, value })))
            }
            Rule::function | Rule::mask => {
                inner.next_if(|p| p.as_rule() == Rule::kw_mask);
                let name = self.ident(&inner.next()?);
                let params = inner.next_if(|p| p.as_rule() == Rule::params);
                let constant = params.is_none();
                let params = params.map(|p| self.params(p)).unwrap_or_default();
                let body = self.expr(inner.next()?);
                Some(Item::Function(Arc::new(Function { name, params, body, constant })))
            }
            Rule::module => {
                let name = self.ident(&inner.next()?);
                let mut groups = Vec::new();
                while let Some(p) = inner.next_if(|p| p.as_rule() == Rule::params) {
                    groups.push(self.params(p));
                }
                let inputs = groups.pop()?;
                let options = groups.pop().unwrap_or_default();
                let (mut items, mut result) = (Vec::new(), None);
                for p in inner {
                    if p.as_rule() == Rule::result {
                        result = Some(self.result(p));
                    } else {
                        items.extend(self.item(p));
                    }
                }
                Some(Item::Module(Arc::new(Module { name, options, inputs, items, result: result? })))
            }
            _ => None,
        }
    }

    fn result(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span(&pair);
        let mut values: Vec<Expr> =
            pair.into_inner().filter(|p| p.as_rule() == Rule::expr).map(|p| self.expr(p)).collect();
        if values.len() == 1 { values.remove(0) } else { Expr { kind: Arc::new(ExprKind::Tuple(values)), span } }
    }

    fn params(&mut self, pair: Pair<'_, Rule>) -> Vec<Param> {
        pair.into_inner().filter_map(|p| self.param(p)).collect()
    }

    fn param(&mut self, pair: Pair<'_, Rule>) -> Option<Param> {
        let mut inner = pair.into_inner().peekable();
        let name = self.ident(&inner.next()?);
        let ty = inner.next_if(|p| p.as_rule() == Rule::ty).and_then(|p| self.ty(p));
        let default = inner.next().map(|p| self.expr(p));
        Some(Param { name, ty, default })
    }

    fn ty(&mut self, pair: Pair<'_, Rule>) -> Option<TypeExpr> {
        let mut inner = pair.into_inner();
        let first = inner.next()?;
        let optional = inner.next().is_some();
        match first.as_rule() {
            Rule::ty_choice => {
                let options = first.into_inner().map(|p| unquote(p.as_str())).collect();
                Some(TypeExpr::Choice { options, optional })
            }
            Rule::ty_name => {
                let name = self.ident(&first);
                const NAMES: &[&str] = &["int", "float", "bool", "string", "list", "mapping", "module"];
                if !NAMES.contains(&&*name.name) {
                    let help = crate::diagnostic::did_you_mean(&name.name, NAMES.iter().copied());
                    self.diagnostics.push(
                        Diagnostic::new(Code::Syntax, format!("no type `{}`", name.name), name.span)
                            .label(format!("expected one of {}", NAMES.join(", ")))
                            .maybe_help(help),
                    );
                    return None;
                }
                Some(TypeExpr::Named { name, optional })
            }
            _ => {
                let mut inner = first.into_inner();
                let name = inner.next()?;
                let dtype = match name.as_str() {
                    "f32" => DType::F32,
                    "i64" => DType::I64,
                    "bool" => DType::Bool,
                    other => {
                        let d = Diagnostic::new(Code::Syntax, format!("no element type `{other}`"), self.span(&name))
                            .label("expected f32, i64 or bool")
                            .maybe_help(match other {
                                "int" | "int32" | "int64" | "i32" | "long" => {
                                    Some("whole numbers are `i64`".to_string())
                                }
                                "float" | "float32" | "f16" | "bf16" | "f64" => {
                                    Some("numbers are `f32`; `--dtype` says how they are computed with".to_string())
                                }
                                _ => None,
                            });
                        self.diagnostics.push(d);
                        return None;
                    }
                };
                Some(TypeExpr::Tensor { dtype, dims: inner.map(|p| self.expr(p)).collect() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (Vec<Item>, Vec<Diagnostic>) {
        let mut diagnostics = Vec::new();
        let items = parse_items(text, &Origin { source: 0, lines: Vec::new() }, &mut diagnostics);
        (items, diagnostics)
    }

    fn value(text: &str) -> Expr {
        let (items, diagnostics) = parse(&format!("a = {text}"));
        assert_eq!(diagnostics, []);
        match &items[0] {
            Item::Binding(b) => b.value.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// The tree in prefix form.
    fn shape(e: &Expr) -> String {
        match &*e.kind {
            ExprKind::Int(v) => v.to_string(),
            ExprKind::Float(v) => format!("{v:?}"),
            ExprKind::Name(n) => n.to_string(),
            ExprKind::Neg(e) => format!("(neg {})", shape(e)),
            ExprKind::Not(e) => format!("(not {})", shape(e)),
            ExprKind::Binary { op, left, right } => format!("({} {} {})", op.symbol(), shape(left), shape(right)),
            ExprKind::Call { callee, args } => {
                format!("{}({})", shape(callee), args.iter().map(|a| shape(&a.value)).collect::<Vec<_>>().join(" "))
            }
            ExprKind::IsNone { value, .. } => format!("(none? {})", shape(value)),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn precedence() {
        for (text, expected) in [
            ("1 + 2 * 3 ^ 2 ^ 4", "(+ 1 (* 2 (^ 3 (^ 2 4))))"),
            ("-d ^ -0.5", "(neg (^ d (neg 0.5)))"),
            ("not a == b and c or d", "(or (and (not (== a b)) c) d)"),
            ("a ?? b + 1", "(?? a (+ b 1))"),
            ("a + 1 is none", "(none? (+ a 1))"),
            ("k_pos // n == q_pos // n", "(== (// k_pos n) (// q_pos n))"),
            ("0..n / 2", "(.. 0 (/ n 2))"),
            ("f(x)(y) * w'", "(* f(x)(y) w')"),
            (
                "'a' in [b]",
                "(in Str(\"a\") List([Expr { kind: Name(\"b\"), span: Span { source: 0, start: 12, end: 13 } }]))",
            ),
        ] {
            assert_eq!(shape(&value(text)), expected, "{text}");
        }
    }

    #[test]
    fn modules_have_options_and_inputs() {
        let (items, diagnostics) = parse(
            "f(n: int?, how: {'a', 'b'} = 'a')(x, m = x) {\n  a, b = g(n)\n  h(y) { return y }\n  return a(x), b(m)\n}\nmask near(n) = k_pos < n\n",
        );
        assert_eq!(diagnostics, []);
        let Item::Module(m) = &items[0] else { panic!() };
        assert_eq!((m.options.len(), m.inputs.len(), m.items.len()), (2, 2, 2));
        assert!(matches!(&*m.result.kind, ExprKind::Tuple(v) if v.len() == 2));
        assert!(matches!(&items[1], Item::Function(f) if !f.constant));
    }

    #[test]
    fn every_broken_item_is_reported() {
        let (items, diagnostics) = parse("a = 1 +\nb = 2\nc = )\nd = if a then b\n");
        assert_eq!(items.len(), 1);
        assert_eq!(diagnostics.len(), 3);
        assert_eq!(diagnostics[1].message, "unexpected `)`");
        assert_eq!(diagnostics[2].help.as_deref(), Some("`if c then a else b` is an expression and needs its `else`"));
    }

    #[test]
    fn what_is_missing_is_said() {
        for (text, label) in [
            ("a = f(b 2)", "expected an operator, `,` or `)`"),
            ("a = f(b\n  c = 2", "expected an operator, `,` or `)`"),
            ("a = [b for i in 0..3)", "expected an operator or `]`"),
            ("a(x) {\n  x + 1\n}", "expected `=` or parameters"),
            ("a(x) {\n  b: x\n  return b\n}", "expected `=` or parameters"),
            ("a = bö", "names are of ASCII letters, digits and `_`; other signs stand in strings"),
        ] {
            let (_, diagnostics) = parse(text);
            let labels: Vec<&str> = diagnostics.iter().flat_map(|d| &d.primary).map(|p| p.text.as_str()).collect();
            assert_eq!(labels, [label], "{text}");
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        let (_, diagnostics) = parse(&format!("a = {}1", "(".repeat(5000)));
        assert_eq!(diagnostics[0].code, Code::TooLarge);
        let (_, diagnostics) = parse(&format!("a = {}1", "1 + ".repeat(5000)));
        assert_eq!(diagnostics[0].code, Code::TooLarge);
        let (_, diagnostics) = parse(&format!("a = {}1", "if b then c else ".repeat(3000)));
        assert_eq!(diagnostics[0].code, Code::TooLarge);
        for deep in ["if b then ", "not ", "2 ^ ", "b ?? "] {
            let (_, diagnostics) = parse(&format!("a = {}1", deep.repeat(3000)));
            assert_eq!(diagnostics[0].code, Code::TooLarge, "{deep}");
        }
        let (_, diagnostics) = parse(&format!("a = b{}", "(c)".repeat(3000)));
        assert_eq!(diagnostics[0].code, Code::TooLarge);
        let (_, diagnostics) = parse(&format!("a = {}1{}", "[".repeat(60), "]".repeat(60)));
        assert_eq!(diagnostics, []);
        // Never closed: exponential for a parser that does not remember, so it gives up.
        for open in ["[", "(", "{", "f(", "b["] {
            let (_, diagnostics) = parse(&format!("a = if b == c{} then d else e", open.repeat(60)));
            assert_eq!(diagnostics.len(), 1, "{open}");
        }
        let (_, diagnostics) = parse(&format!("a = {}1", "if b then c else if (".repeat(30)));
        assert_eq!(diagnostics[0].code, Code::Syntax);
        for chain in ["if b then c else ", "b or ", "b + ", "b == 2 and ", "if b then c else\n "] {
            let (_, diagnostics) = parse(&format!("a = {}1", chain.repeat(150)));
            assert_eq!(diagnostics, [], "{chain}");
        }
        let (_, diagnostics) = parse(&format!("a = {}1{}", "(if b then c else ".repeat(32), ")".repeat(32)));
        assert_eq!(diagnostics, []);
        let (_, diagnostics) = parse(&"a = if b then c else d\n  e = [f, if g then h else i]\n".repeat(500));
        assert_eq!(diagnostics, []);
    }

    #[test]
    fn keys_are_given_once() {
        let (_, diagnostics) = parse("a = {b: 1, c: {b: 2}, b: 3}\n");
        assert_eq!(diagnostics.len(), 1);
        assert_eq!(diagnostics[0].code, Code::DuplicateKey);
        assert_eq!(diagnostics[0].primary.as_ref().map(|p| p.span.start), Some(22));
    }

    #[test]
    fn positions_are_the_files() {
        let mut diagnostics = Vec::new();
        let origin = Origin { source: 3, lines: vec![(0, 100), (6, 110)] };
        let items = parse_items("a = 1\nb = c\n", &origin, &mut diagnostics);
        let Item::Binding(b) = &items[1] else { panic!() };
        assert_eq!(b.value.span, Span { source: 3, start: 114, end: 115 });
    }

    /// What the grammar can say, the reference shows: each rule is met in an example.
    #[test]
    fn every_rule_is_in_an_example_of_the_reference() {
        let page = include_str!("../../../../docs/language.md");
        let mut met = std::collections::BTreeSet::new();
        for example in page.split("```xf\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            // The body of a module stands alone there.
            let is_body = example.lines().any(|l| l.starts_with("return "));
            let text = if is_body { format!("m(x) {{\n{example}\n}}") } else { example.to_owned() };
            let pairs = XfParser::parse(Rule::items, &text).unwrap_or_else(|e| panic!("{e}"));
            met.extend(pairs.flatten().map(|pair| format!("{:?}", pair.as_rule())));
        }
        let grammar = include_str!("xf.pest");
        // Silent rules make no pair, nor does what lies within an atomic one.
        let told =
            grammar.lines().filter_map(|l| l.split_once('=').map(|(name, rest)| (name.trim(), rest.trim_start())));
        let told = told.filter(|(name, rest)| !name.contains(' ') && !rest.starts_with('_') && *name != "ident_char");
        let missing: Vec<&str> = told.map(|(name, _)| name).filter(|name| !met.contains(*name)).collect();
        assert!(missing.is_empty(), "no example of docs/language.md has {missing:?}");
    }
}
