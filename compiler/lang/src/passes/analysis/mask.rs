//! How far a query sees, from its mask alone, and whether it sees all that lies so far.
//!
//! Given a mask over `(q_pos, k_pos, head, extras..)`, it bounds the ages `q_pos - k_pos` for which the mask can hold, by intervals:
//! comparisons of linear forms in the positions, intersected by `and`, joined by `or`. What is not understood can hold at any age,
//! so it never narrows.

use std::collections::HashMap;

use crate::graph::{Graph, ValueId};
use crate::ops::fused::Reach;
use crate::ops::{BinaryOp, Core, UnaryOp};

/// Ages `lo ..= hi` at which something can hold; unbounded at the ends of the type. Empty when `lo > hi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ages {
    lo: i128,
    hi: i128,
}

const ANY: Ages = Ages { lo: i128::MIN, hi: i128::MAX };
const NONE: Ages = Ages { lo: i128::MAX, hi: i128::MIN };

impl Ages {
    fn and(self, other: Ages) -> Ages {
        Ages { lo: self.lo.max(other.lo), hi: self.hi.min(other.hi) }
    }

    fn or(self, other: Ages) -> Ages {
        match (self.lo > self.hi, other.lo > other.hi) {
            (true, _) => other,
            (_, true) => self,
            _ => Ages { lo: self.lo.min(other.lo), hi: self.hi.max(other.hi) },
        }
    }
}

/// `q * q_pos + k * k_pos + c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    q: i128,
    k: i128,
    c: i128,
}

impl Form {
    fn minus(self, other: Form) -> Form {
        Form { q: self.q - other.q, k: self.k - other.k, c: self.c - other.c }
    }

    fn times(self, n: i128) -> Form {
        Form { q: self.q * n, k: self.k * n, c: self.c * n }
    }

    /// Ages at which `self <= 0` can hold.
    fn at_most_zero(self) -> Ages {
        match (self.q, self.k) {
            (0, 0) => {
                if self.c <= 0 {
                    ANY
                } else {
                    NONE
                }
            }
            // a * age + c <= 0
            (a, b) if a == -b && a > 0 => Ages { lo: i128::MIN, hi: (-self.c).div_euclid(a) },
            (a, b) if a == -b => Ages { lo: -((-self.c).div_euclid(-a)), hi: i128::MAX },
            _ => ANY,
        }
    }
}

/// What a mask implies.
pub fn reach(mask: &Graph) -> Reach {
    let Some(output) = mask.outputs().first() else {
        return Reach { window: None, future: true };
    };
    let ages = Analysis { mask, memo: HashMap::new(), forms: HashMap::new() }.holds(output.value, true);
    if ages.lo > ages.hi {
        return Reach { window: Some(0), future: false };
    }
    let window = (ages.hi < i128::MAX).then(|| u64::try_from((ages.hi + 1).max(0)).ok()).flatten();
    Reach { window, future: ages.lo < 0 }
}

/// Whether a mask is no more than bounds of the age `q_pos - k_pos`, and how many tokens behind the query are within them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Least age of a key that can be seen; `None` where there is no bound.
    pub least: Option<i128>,
    /// Largest age; `None` where there is no bound.
    pub largest: Option<i128>,
    /// Keys of an age in between may be left out. Otherwise the bounds are all that the mask says.
    pub has_gaps: bool,
}

/// The bounds of a mask, and whether they are all of it.
pub fn span(mask: &Graph) -> Span {
    let Some(output) = mask.outputs().first() else {
        return Span { least: None, largest: None, has_gaps: true };
    };
    let mut analysis = Analysis { mask, memo: HashMap::new(), forms: HashMap::new() };
    let ages = analysis.holds(output.value, true);
    let bound = |age: i128| (age > i128::MIN && age < i128::MAX).then_some(age);
    // A part that can hold at no age at which it can fail is decided by the age alone.
    let undecided = |value| {
        let both = analysis.holds(value, true).and(analysis.holds(value, false));
        both.lo <= both.hi
    };
    let has_gaps = ages.lo > ages.hi || parts(mask).iter().map(|part| part.value).any(undecided);
    Span { least: bound(ages.lo), largest: bound(ages.hi), has_gaps }
}

/// What one part of a mask says of the age `q_pos - k_pos` of a key that is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The part: a value of the mask.
    pub value: ValueId,
    /// Least age; `None` where there is no bound.
    pub least: Option<i128>,
    /// Largest age; `None` where there is no bound.
    pub largest: Option<i128>,
    /// Whether it holds at no age.
    pub never: bool,
}

/// The parts that a mask is the `and` of, in the order in which they are written, each with its bounds.
pub fn parts(mask: &Graph) -> Vec<Part> {
    let Some(output) = mask.outputs().first() else { return Vec::new() };
    let mut analysis = Analysis { mask, memo: HashMap::new(), forms: HashMap::new() };
    let (mut parts, mut stack) = (Vec::new(), vec![output.value]);
    while let Some(value) = stack.pop() {
        if let (Some(Core::Binary(BinaryOp::And)), [a, b]) =
            (mask.op(value.node).as_core(), &mask.operands(value.node)[..])
        {
            stack.extend([*b, *a]);
            continue;
        }
        let ages = analysis.holds(value, true);
        let bound = |age: i128| (age > i128::MIN && age < i128::MAX).then_some(age);
        parts.push(Part { value, least: bound(ages.lo), largest: bound(ages.hi), never: ages.lo > ages.hi });
    }
    parts
}

struct Analysis<'g> {
    mask: &'g Graph,
    memo: HashMap<(ValueId, bool), Ages>,
    forms: HashMap<ValueId, Option<Form>>,
}

impl Analysis<'_> {
    /// Ages at which `value` can be `wanted`.
    fn holds(&mut self, value: ValueId, wanted: bool) -> Ages {
        if let Some(ages) = self.memo.get(&(value, wanted)) {
            return *ages;
        }
        let operands = self.mask.operands(value.node);
        let ages = match (self.mask.op(value.node).as_core(), &operands[..]) {
            (Some(Core::Const { values }), _) => {
                if values.iter().any(|v| (*v != 0.0) == wanted) {
                    ANY
                } else {
                    NONE
                }
            }
            (Some(Core::Unary(UnaryOp::Not)), [x]) => self.holds(*x, !wanted),
            (Some(Core::Binary(BinaryOp::And)), [a, b]) => self.both(*a, *b, wanted, wanted),
            (Some(Core::Binary(BinaryOp::Or)), [a, b]) => self.both(*a, *b, wanted, !wanted),
            (Some(Core::Select), [c, a, b]) => {
                let (c, a, b) = (*c, *a, *b);
                let first = self.holds(c, true).and(self.holds(a, wanted));
                first.or(self.holds(c, false).and(self.holds(b, wanted)))
            }
            (Some(Core::Binary(f)), [a, b]) => self.compares(*f, *a, *b, wanted),
            _ => ANY,
        };
        self.memo.insert((value, wanted), ages);
        ages
    }

    fn both(&mut self, a: ValueId, b: ValueId, wanted: bool, all: bool) -> Ages {
        let (a, b) = (self.holds(a, wanted), self.holds(b, wanted));
        if all { a.and(b) } else { a.or(b) }
    }

    fn compares(&mut self, f: BinaryOp, a: ValueId, b: ValueId, wanted: bool) -> Ages {
        let f = match (f, wanted) {
            (f, true) => f,
            (BinaryOp::Le, _) => BinaryOp::Gt,
            (BinaryOp::Lt, _) => BinaryOp::Ge,
            (BinaryOp::Ge, _) => BinaryOp::Lt,
            (BinaryOp::Gt, _) => BinaryOp::Le,
            (BinaryOp::Ne, _) => BinaryOp::Eq,
            (BinaryOp::Eq, _) => BinaryOp::Ne,
            _ => return ANY,
        };
        match f {
            BinaryOp::Le => self.at_most(a, b, 0),
            BinaryOp::Lt => self.at_most(a, b, 1),
            BinaryOp::Ge => self.at_most(b, a, 0),
            BinaryOp::Gt => self.at_most(b, a, 1),
            BinaryOp::Eq => {
                let forms = self.at_most(a, b, 0).and(self.at_most(b, a, 0));
                forms.and(self.same_chunk(a, b))
            }
            _ => ANY,
        }
    }

    /// Ages at which `a + gap <= b` can hold.
    fn at_most(&mut self, a: ValueId, b: ValueId, gap: i128) -> Ages {
        let Some(bound) = self.form(b) else { return ANY };
        let bound = Form { c: bound.c - gap, ..bound };
        if let Some(form) = self.form(a) {
            return form.minus(bound).at_most_zero();
        }
        // |x| <= b is x <= b and -x <= b.
        let mask = self.mask;
        if mask.op(a.node).as_core() == Some(&Core::Unary(UnaryOp::Abs))
            && let Some(x) = mask.operands(a.node).first().and_then(|x| self.form(*x))
        {
            return x.minus(bound).at_most_zero().and(x.times(-1).minus(bound).at_most_zero());
        }
        ANY
    }

    /// `q_pos // n == k_pos // n`: less than `n` apart.
    fn same_chunk(&mut self, a: ValueId, b: ValueId) -> Ages {
        let (Some((x, n)), Some((y, m))) = (self.chunk(a), self.chunk(b)) else { return ANY };
        let age = x.minus(y);
        if n != m || n <= 0 {
            return ANY;
        }
        // |x - y| < n
        let (less, more) = (Form { c: age.c - (n - 1), ..age }, age.times(-1));
        less.at_most_zero().and(Form { c: more.c - (n - 1), ..more }.at_most_zero())
    }

    fn chunk(&mut self, value: ValueId) -> Option<(Form, i128)> {
        let Core::Binary(BinaryOp::FloorDiv) = self.mask.op(value.node).as_core()? else { return None };
        let [x, n] = self.mask.operands(value.node)[..] else { return None };
        let n = self.form(n).filter(|n| n.q == 0 && n.k == 0)?.c;
        Some((self.form(x)?, n))
    }

    /// A value as a linear form of the positions, in integers.
    fn form(&mut self, value: ValueId) -> Option<Form> {
        if let Some(known) = self.forms.get(&value) {
            return *known;
        }
        let form = self.read_form(value);
        self.forms.insert(value, form);
        form
    }

    fn read_form(&mut self, value: ValueId) -> Option<Form> {
        if !self.mask.ty(value).dtype.is_int() {
            return None;
        }
        let operands = self.mask.operands(value.node);
        let form = match (self.mask.op(value.node).as_core()?, &operands[..]) {
            (Core::Arg { index: 0 }, _) => Form { q: 1, k: 0, c: 0 },
            (Core::Arg { index: 1 }, _) => Form { q: 0, k: 1, c: 0 },
            (Core::Const { values }, _) => Form { q: 0, k: 0, c: *values.first()? as i64 as i128 },
            (Core::Cast, [x]) => self.form(*x)?,
            (Core::Unary(UnaryOp::Neg), [x]) => self.form(*x)?.times(-1),
            (Core::Binary(BinaryOp::Add), [a, b]) => self.form(*a)?.minus(self.form(*b)?.times(-1)),
            (Core::Binary(BinaryOp::Sub), [a, b]) => self.form(*a)?.minus(self.form(*b)?),
            (Core::Binary(BinaryOp::Mul), [a, b]) => match (self.form(*a)?, self.form(*b)?) {
                (Form { q: 0, k: 0, c }, x) | (x, Form { q: 0, k: 0, c }) => x.times(c),
                _ => return None,
            },
            _ => return None,
        };
        // Far from where sums of forms could overflow, and where positions of 32 bits could.
        let small = |x: i128| x.abs() < 1 << 40;
        (small(form.q) && small(form.k) && small(form.c)).then_some(form)
    }
}
