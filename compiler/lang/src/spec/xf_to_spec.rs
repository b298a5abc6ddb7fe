//! Equations to the tree of [`ast`](super::ast).
//!
//! Given text and a map from its bytes to a file's, gives the items that parse and a diagnostic for each top-level item that does
//! not: an item starts at the margin, so that one mistake hides none of the others.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use pest::Parser;
use pest::iterators::{Pair, Pairs};
use pest::pratt_parser::{Assoc, Op, PrattParser};

use super::ast::{Arg, BinOp, Binding, Expr, ExprKind, Function, Ident, Item, Module, Param, TypeExpr};
use super::syntax_error::{syntax_error, too_deep};
use super::tree::too_large;
use crate::diagnostic::{Code, Diagnostic, Span};
use crate::graph::DType;

#[derive(pest_derive::Parser)]
#[grammar = "spec/xf.pest"]
struct XfParser;

/// Deepest nesting of brackets and of expressions.
pub(super) const MAX_DEPTH: usize = 64;

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
        match XfParser::parse(Rule::items, chunk) {
            Ok(pairs) => items.extend(pairs.flat_map(Pair::into_inner).filter_map(|pair| reader.item(pair))),
            Err(error) => {
                let found = syntax_error(chunk, &error);
                let span = reader.origin.span(start + found.0, start + found.1);
                reader
                    .diagnostics
                    .push(Diagnostic::new(Code::Syntax, found.2, span).label(found.3).maybe_help(found.4));
            }
        }
    }
    items
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

static OPERATORS: LazyLock<PrattParser<Rule>> = LazyLock::new(|| {
    let left = |rules: &[Rule]| {
        rules[1..].iter().fold(Op::infix(rules[0], Assoc::Left), |op, r| op | Op::infix(*r, Assoc::Left))
    };
    PrattParser::new()
        .op(Op::infix(Rule::coalesce, Assoc::Right))
        .op(left(&[Rule::or]))
        .op(left(&[Rule::and]))
        .op(Op::prefix(Rule::not))
        .op(left(&[Rule::in_op, Rule::eq, Rule::ne, Rule::le, Rule::ge, Rule::lt, Rule::gt])
            | Op::postfix(Rule::is_none))
        .op(left(&[Rule::range]))
        .op(left(&[Rule::add, Rule::sub]))
        .op(left(&[Rule::mul, Rule::div, Rule::floor_div, Rule::rem]))
        .op(Op::prefix(Rule::neg))
        .op(Op::infix(Rule::pow, Assoc::Right))
        .op(Op::postfix(Rule::call) | Op::postfix(Rule::index) | Op::postfix(Rule::member))
});

fn operator(rule: Rule) -> BinOp {
    match rule {
        Rule::coalesce => BinOp::Coalesce,
        Rule::or => BinOp::Or,
        Rule::and => BinOp::And,
        Rule::in_op => BinOp::In,
        Rule::eq => BinOp::Eq,
        Rule::ne => BinOp::Ne,
        Rule::lt => BinOp::Lt,
        Rule::le => BinOp::Le,
        Rule::gt => BinOp::Gt,
        Rule::ge => BinOp::Ge,
        Rule::range => BinOp::Range,
        Rule::add => BinOp::Add,
        Rule::sub => BinOp::Sub,
        Rule::mul => BinOp::Mul,
        Rule::div => BinOp::Div,
        Rule::floor_div => BinOp::FloorDiv,
        Rule::rem => BinOp::Rem,
        _ => BinOp::Pow,
    }
}

struct Reader<'a> {
    origin: &'a Origin,
    start: usize,
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl Reader<'_> {
    fn span(&self, pair: &Pair<'_, Rule>) -> Span {
        let span = pair.as_span();
        let trimmed = span.as_str().trim_end().len();
        self.origin.span(self.start + span.start(), self.start + span.start() + trimmed)
    }

    fn too_deep(&mut self, offset: usize) {
        let span = self.origin.span(self.start + offset, self.start + offset + 1);
        self.diagnostics.push(Diagnostic::new(Code::TooLarge, format!("nested deeper than {MAX_DEPTH} levels"), span));
    }

    fn ident(&self, pair: &Pair<'_, Rule>) -> Ident {
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
                            .label("expected f32, i64 or bool");
                        self.diagnostics.push(d);
                        return None;
                    }
                };
                Some(TypeExpr::Tensor { dtype, dims: inner.map(|p| self.expr(p)).collect() })
            }
        }
    }

    fn expr(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let (span, start) = (self.span(&pair), pair.as_span().start());
        let inner = pair.into_inner();
        // A chain of a thousand operators is one expression deep in the grammar and a thousand in the tree.
        if inner.clone().count() > MAX_DEPTH * 4 {
            self.too_deep(start);
            return Expr { kind: Arc::new(ExprKind::None), span };
        }
        if inner.peek().is_some_and(|p| p.as_rule() == Rule::if_expr) {
            let parts: Vec<Expr> =
                inner.flat_map(Pair::into_inner).filter(|p| p.as_rule() == Rule::expr).map(|p| self.expr(p)).collect();
            if let Ok([condition, then, otherwise]) = <[Expr; 3]>::try_from(parts) {
                return Expr { kind: Arc::new(ExprKind::If { condition, then, otherwise }), span };
            }
            return Expr { kind: Arc::new(ExprKind::None), span };
        }
        self.infix(inner)
    }

    fn infix(&mut self, pairs: Pairs<'_, Rule>) -> Expr {
        // The parser of operators wants one closure at a time to hold the reader.
        let reader = std::cell::RefCell::new(self);
        OPERATORS
            .map_primary(|p| reader.borrow_mut().primary(p))
            .map_prefix(|op, value| {
                let span = reader.borrow().span(&op).to(value.span);
                let kind = if op.as_rule() == Rule::not { ExprKind::Not(value) } else { ExprKind::Neg(value) };
                Expr { kind: Arc::new(kind), span }
            })
            .map_infix(|left, op, right| {
                let span = left.span.to(right.span);
                Expr { kind: Arc::new(ExprKind::Binary { op: operator(op.as_rule()), left, right }), span }
            })
            .map_postfix(|base, op| reader.borrow_mut().postfix(base, op))
            .parse(pairs)
    }

    fn postfix(&mut self, base: Expr, pair: Pair<'_, Rule>) -> Expr {
        let span = base.span.to(self.span(&pair));
        let kind = match pair.as_rule() {
            Rule::call => {
                ExprKind::Call { callee: base, args: pair.into_inner().filter_map(|p| self.arg(p)).collect() }
            }
            Rule::index => ExprKind::Index { base, indices: pair.into_inner().map(|p| self.expr(p)).collect() },
            Rule::is_none => {
                let negated = pair.into_inner().any(|p| p.as_rule() == Rule::kw_not);
                ExprKind::IsNone { value: base, negated }
            }
            _ => match pair.into_inner().next() {
                Some(name) => ExprKind::Member { base, name: self.ident(&name) },
                None => ExprKind::None,
            },
        };
        Expr { kind: Arc::new(kind), span }
    }

    fn arg(&mut self, pair: Pair<'_, Rule>) -> Option<Arg> {
        let mut inner = pair.into_inner().peekable();
        let name = inner.next_if(|p| p.as_rule() == Rule::ident).map(|p| self.ident(&p));
        Some(Arg { name, value: self.expr(inner.next()?) })
    }

    fn primary(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span(&pair);
        let kind = match pair.as_rule() {
            Rule::expr => return self.expr(pair),
            Rule::number => self.number(&pair),
            Rule::string => ExprKind::Str(unquote(pair.as_str())),
            Rule::boolean => ExprKind::Bool(pair.as_str() == "true"),
            Rule::ident => ExprKind::Name(pair.as_str().into()),
            Rule::list => ExprKind::List(pair.into_inner().map(|p| self.expr(p)).collect()),
            Rule::mapping => {
                let entries: Vec<_> = pair.into_inner().filter_map(|p| self.entry(p)).collect();
                self.check_keys(&entries);
                ExprKind::Mapping(entries)
            }
            Rule::comprehension => match self.comprehension(pair) {
                Some(kind) => kind,
                None => ExprKind::None,
            },
            _ => ExprKind::None,
        };
        Expr { kind: Arc::new(kind), span }
    }

    fn entry(&mut self, pair: Pair<'_, Rule>) -> Option<(Ident, Expr)> {
        let mut inner = pair.into_inner();
        let name = self.ident(&inner.next()?);
        Some((name, self.expr(inner.next()?)))
    }

    fn check_keys(&mut self, entries: &[(Ident, Expr)]) {
        let mut places: BTreeMap<&str, Span> = BTreeMap::new();
        for (key, _) in entries {
            if let Some(first) = places.insert(&key.name, key.span) {
                self.diagnostics.push(
                    Diagnostic::new(Code::DuplicateKey, format!("the key `{}` is given twice", key.name), key.span)
                        .label("given again")
                        .other(first, "first here"),
                );
            }
        }
    }

    fn comprehension(&mut self, pair: Pair<'_, Rule>) -> Option<ExprKind> {
        let mut inner = pair.into_inner().filter(|p| matches!(p.as_rule(), Rule::expr | Rule::ident));
        let body = self.expr(inner.next()?);
        let variable = self.ident(&inner.next()?);
        let list = self.expr(inner.next()?);
        Some(ExprKind::Comprehension { body, variable, list })
    }

    fn number(&mut self, pair: &Pair<'_, Rule>) -> ExprKind {
        let text = pair.as_str();
        if let Ok(value) = text.parse::<i64>() {
            return ExprKind::Int(value);
        }
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() && !too_large(text) => ExprKind::Float(value),
            _ => {
                let most = if too_large(text) { i64::MAX.to_string() } else { format!("{:e}", f64::MAX) };
                let message = format!("the number {text} is too large: at most {most}");
                self.diagnostics.push(Diagnostic::new(Code::TooLarge, message, self.span(pair)).label("too large"));
                ExprKind::Int(0)
            }
        }
    }
}

fn unquote(text: &str) -> Arc<str> {
    text.get(1..text.len().saturating_sub(1)).unwrap_or("").into()
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
    fn deep_nesting_is_refused() {
        let (_, diagnostics) = parse(&format!("a = {}1", "(".repeat(5000)));
        assert_eq!(diagnostics[0].code, Code::TooLarge);
        let (_, diagnostics) = parse(&format!("a = {}1", "1 + ".repeat(5000)));
        assert_eq!(diagnostics[0].code, Code::TooLarge);
        let (_, diagnostics) = parse(&format!("a = {}1", "if b then c else ".repeat(3000)));
        assert_eq!(diagnostics[0].code, Code::TooLarge);
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
}
