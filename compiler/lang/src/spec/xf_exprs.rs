//! Expressions of the grammar to the tree of [`ast`](super::ast): operators by precedence, calls, lists, mappings, numbers.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use pest::iterators::{Pair, Pairs};
use pest::pratt_parser::{Assoc, Op, PrattParser};

use super::ast::{Arg, BinOp, Expr, ExprKind, Ident};
use super::tree::too_large;
use super::xf_to_spec::{MAX_DEPTH, Reader, Rule};
use crate::diagnostic::{Code, Diagnostic, Span};

/// Most operands and operators of one chain, as in a sum.
const MAX_CHAIN: usize = 1024;

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

impl Reader<'_> {
    pub(super) fn expr(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let (span, start) = (self.span(&pair), pair.as_span().start());
        let inner = pair.into_inner();
        // Calls, powers and the like nest in the tree; sums and `or`s are chains.
        let (mut chained, mut nested) = (0, 0);
        for pair in
            inner.clone().chain(inner.clone().filter(|p| p.as_rule() == Rule::if_expr).flat_map(Pair::into_inner))
        {
            match pair.as_rule() {
                Rule::call | Rule::index | Rule::member | Rule::is_none => nested += 1,
                Rule::not | Rule::neg | Rule::pow | Rule::coalesce => nested += 1,
                _ => chained += 1,
            }
        }
        if nested > MAX_DEPTH {
            self.too_deep(start);
            return Expr { kind: Arc::new(ExprKind::None), span };
        }
        if chained > MAX_CHAIN {
            let message = format!("an expression of more than {MAX_CHAIN} parts");
            self.diagnostics.push(Diagnostic::new(Code::TooLarge, message, span).label("too long"));
            return Expr { kind: Arc::new(ExprKind::None), span };
        }
        if inner.peek().is_some_and(|p| p.as_rule() == Rule::if_expr) {
            let mut parts: Vec<Expr> =
                inner.flat_map(Pair::into_inner).filter(|p| p.as_rule() == Rule::expr).map(|p| self.expr(p)).collect();
            let mut chain = parts.pop().unwrap_or(Expr { kind: Arc::new(ExprKind::None), span });
            // Conditions and values in turn, the last choice innermost.
            while let (Some(then), Some(condition)) = (parts.pop(), parts.pop()) {
                let span = condition.span.to(span);
                chain = Expr { kind: Arc::new(ExprKind::If { condition, then, otherwise: chain }), span };
            }
            return Expr { span, ..chain };
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
            Rule::list => self.list(pair),
            Rule::mapping => {
                let entries: Vec<_> = pair.into_inner().filter_map(|p| self.entry(p)).collect();
                self.check_keys(&entries);
                ExprKind::Mapping(entries)
            }
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

    fn list(&mut self, pair: Pair<'_, Rule>) -> ExprKind {
        let (mut items, mut over) = (Vec::new(), None);
        for p in pair.into_inner() {
            if p.as_rule() == Rule::over {
                over = self.over(p);
            } else {
                items.push(self.expr(p));
            }
        }
        match (over, items.pop()) {
            (Some((variable, list)), Some(body)) => ExprKind::Comprehension { body, variable, list },
            (_, last) => ExprKind::List(items.into_iter().chain(last).collect()),
        }
    }

    /// `for variable in list`.
    fn over(&mut self, pair: Pair<'_, Rule>) -> Option<(Ident, Expr)> {
        let mut inner = pair.into_inner().filter(|p| matches!(p.as_rule(), Rule::expr | Rule::ident));
        let variable = self.ident(&inner.next()?);
        Some((variable, self.expr(inner.next()?)))
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

/// A string without its quotes.
pub(super) fn unquote(text: &str) -> Arc<str> {
    text.get(1..text.len().saturating_sub(1)).unwrap_or("").into()
}
