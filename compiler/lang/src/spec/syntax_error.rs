//! What is wrong with a text that does not follow the grammar, in words.

use pest::error::{ErrorVariant, InputLocation};

use super::xf_to_spec::{MAX_DEPTH, Rule};

/// The offset where brackets and chained `if`s nest deeper than the limit: the parser recurses for both.
pub(super) fn too_deep(text: &str) -> Option<usize> {
    // The `if`s open at each level of brackets; a comma or a `=` ends those of its level.
    let mut open = vec![0_usize];
    // `else if` goes on with a chain, which is no deeper.
    let mut after_else = false;
    let (mut comment, mut quote, mut word) = (false, None, 0);
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '\'';
    for (offset, c) in text.char_indices() {
        if quote.is_none() && !comment && is_word(c) && (c != '\'' || word < offset) {
            continue;
        }
        if &text[word..offset] == "if" && quote.is_none() && !comment && !after_else {
            *open.last_mut()? += 1;
        }
        if word < offset || !c.is_whitespace() {
            after_else = &text[word..offset] == "else" && c.is_whitespace() && quote.is_none() && !comment;
        }
        word = offset + c.len_utf8();
        match (c, quote) {
            ('\n', _) => (comment, quote) = (false, None),
            _ if comment => {}
            (_, Some(q)) if c == q => quote = None,
            (_, Some(_)) => {}
            ('#', None) => comment = true,
            ('\'' | '"', None) => quote = Some(c),
            ('(' | '[' | '{', None) => open.push(0),
            (')' | ']' | '}', None) if open.len() > 1 => {
                open.pop();
            }
            (',' | '=', None) => *open.last_mut()? = 0,
            _ => {}
        }
        if open.len() - 1 + open.iter().sum::<usize>() > MAX_DEPTH {
            return Some(offset);
        }
    }
    None
}

/// A grammar error in words.
pub(super) struct SyntaxError {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) message: String,
    pub(super) label: String,
    pub(super) help: Option<String>,
    /// Where the bracket is that might not be closed.
    pub(super) opened: Option<usize>,
}

pub(super) fn syntax_error(text: &str, error: &pest::error::Error<Rule>) -> SyntaxError {
    let at = match error.location {
        InputLocation::Pos(p) | InputLocation::Span((p, _)) => p.min(text.len()),
    };
    let rest = &text[at..];
    let length = rest
        .find(|c: char| !(c.is_alphanumeric() || c == '_'))
        .unwrap_or(rest.len())
        .max(rest.chars().next().map_or(0, char::len_utf8));
    let found = rest.get(..length).map_or("", str::trim);
    let message =
        if found.is_empty() { "the definition ends too early".to_string() } else { format!("unexpected `{found}`") };
    let mut expected: Vec<&str> = match &error.variant {
        ErrorVariant::ParsingError { positives, .. } => {
            positives.iter().map(|r| describe(*r)).filter(|d| !d.is_empty()).collect()
        }
        ErrorVariant::CustomError { .. } => Vec::new(),
    };
    expected.sort_unstable();
    expected.dedup();
    let before = text[..at].trim_end();
    let open = open_brackets(before);
    let in_body = open.iter().any(|(offset, _)| is_body(text, *offset));
    // Signs are no rules of the grammar, so the parser does not list them.
    let mut opened = None;
    let binds = expected == ["parameters"];
    if binds {
        expected.insert(0, "`=`");
    } else if let Some((offset, bracket)) = open.last().filter(|(offset, _)| !is_body(text, *offset))
        && expected.contains(&"an operator")
        && !expected.contains(&"`else`")
        && found.is_ascii()
    {
        let wrong_close = matches!(found, ")" | "]" | "}");
        expected.extend((!wrong_close).then_some("`,`"));
        expected.push(match bracket {
            '(' => "`)`",
            '[' => "`]`",
            _ => "`}`",
        });
        opened = Some(*offset);
    }
    let label = match expected.as_slice() {
        _ if !found.is_ascii() => {
            "names are of ASCII letters, digits and `_`; other signs stand in strings".to_string()
        }
        [] => "not understood here".to_string(),
        [one] => format!("expected {one}"),
        [most @ .., last] => format!("expected {} or {last}", most.join(", ")),
    };
    let sign = rest.chars().next().filter(|c| !c.is_alphanumeric());
    let help = if !found.is_ascii() {
        None
    } else if sign == Some('*') && before.ends_with('*') {
        Some("a power is `x ^ 2`")
    } else if sign == Some('@') {
        Some("the product with a matrix of weights is `linear`; others are `einsum('..', a, b)`")
    } else if sign == Some(';') {
        Some("a definition ends where the next one begins; there is no `;`")
    } else if sign == Some('/') && (before.is_empty() || text[..at].ends_with(['\n', ' '])) && rest.starts_with("//") {
        Some("a comment begins with `#`")
    } else if found.starts_with(char::is_alphabetic) && before.lines().last().unwrap_or_default().contains(" // ") {
        Some("`#` begins a comment; `a // b` is a quotient rounded down")
    } else if sign == Some('.') && rest[1..].starts_with(|c: char| c.is_ascii_digit()) {
        Some("a number begins with a digit: `0.5`")
    } else if sign == Some('&') || sign == Some('|') {
        Some("conditions and masks are combined by `and`, `or` and `not`")
    } else if found == "def" || before == "def" || before.ends_with("\ndef") {
        Some("there is no `def`: a module is `name(x) { .. return y }`, a function `name(x) = value`")
    } else if sign == Some('?') {
        Some("a choice is `if c then a else b`; of tensors, element by element, `where(c, a, b)`")
    } else if sign == Some(':') && before.ends_with('[') {
        Some("tensors are cut by `parts`, and `split` makes heads; `first` is the first token of a sequence")
    } else if found == "for" || found == "while" {
        Some("there are no loops: a list is `[f(i) for i in 0..n]`, and a list of modules applied is one after another")
    } else if found == "if" {
        Some("`if c then a else b` is an expression: `name = if c then a else b`")
    } else if found == "=" && !before.is_empty() {
        Some("`==` compares; `=` binds a name once")
    } else if binds && found == ":" {
        Some("`name = value` binds a name; `:` stands in mappings and before types")
    } else if binds && in_body {
        Some("a line of a body is `name = value`, and the last is `return value`")
    } else if binds {
        Some("a definition is `name = value`, `name(x) = value` or `name(options)(inputs) { .. }`")
    } else if opened.is_none() && (found == "}" || (found.is_empty() && text.contains('{'))) {
        Some("a module's body ends with `return value` and `}`")
    } else if before.contains(" if ") && (found.is_empty() || positives_have(error, Rule::kw_else)) {
        Some("`if c then a else b` is an expression and needs its `else`")
    } else {
        None
    };
    // An end of text is shown at the end of what was written.
    let (start, end) =
        if found.is_empty() { (before.len().saturating_sub(1), before.len()) } else { (at, at + length) };
    SyntaxError { start, end, message, label, help: help.map(str::to_string), opened }
}

/// The brackets that are open at the end of a text, outermost first.
fn open_brackets(text: &str) -> Vec<(usize, char)> {
    let (mut open, mut comment, mut quote, mut previous) = (Vec::new(), false, None, ' ');
    for (offset, c) in text.char_indices() {
        match quote {
            Some(q) if c == q || c == '\n' => quote = None,
            Some(_) => {}
            None if comment => comment = c != '\n',
            None => match c {
                '#' => comment = true,
                // A prime is part of the name before it.
                '\'' if previous.is_ascii_alphanumeric() || previous == '_' || previous == '\'' => {}
                '\'' | '"' => quote = Some(c),
                '(' | '[' | '{' => open.push((offset, c)),
                ')' | ']' | '}' => {
                    open.pop();
                }
                _ => {}
            },
        }
        previous = c;
    }
    open
}

/// Whether the bracket at an offset begins the body of a module: it stands behind parameters.
fn is_body(text: &str, offset: usize) -> bool {
    text[offset..].starts_with('{') && text[..offset].trim_end().ends_with(')')
}

fn positives_have(error: &pest::error::Error<Rule>, rule: Rule) -> bool {
    matches!(&error.variant, ErrorVariant::ParsingError { positives, .. } if positives.contains(&rule))
}

fn describe(rule: Rule) -> &'static str {
    match rule {
        Rule::EOI
        | Rule::items
        | Rule::item
        | Rule::binding
        | Rule::module
        | Rule::function
        | Rule::mask
        | Rule::kw_mask => "a definition",
        Rule::result | Rule::kw_return => "`return`",
        Rule::expr
        | Rule::if_expr
        | Rule::infix
        | Rule::term
        | Rule::primary
        | Rule::number
        | Rule::string
        | Rule::boolean
        | Rule::none
        | Rule::list
        | Rule::mapping
        | Rule::not
        | Rule::neg
        | Rule::prefix
        | Rule::kw_if => "an expression",
        Rule::ident => "a name",
        Rule::params | Rule::param => "parameters",
        Rule::ty | Rule::ty_choice | Rule::ty_tensor | Rule::ty_name => "a type",
        Rule::entry => "`name: value`",
        Rule::arg => "an argument",
        Rule::kw_then => "`then`",
        Rule::kw_else => "`else`",
        Rule::over | Rule::kw_for => "`for`",
        Rule::kw_in => "`in`",
        Rule::kw_none => "`none`",
        Rule::kw_not => "`not`",
        Rule::call
        | Rule::index
        | Rule::member
        | Rule::postfix
        | Rule::operator
        | Rule::in_op
        | Rule::coalesce
        | Rule::or
        | Rule::and
        | Rule::eq
        | Rule::ne
        | Rule::le
        | Rule::ge
        | Rule::lt
        | Rule::gt
        | Rule::range
        | Rule::add
        | Rule::sub
        | Rule::floor_div
        | Rule::div
        | Rule::mul
        | Rule::rem
        | Rule::pow
        | Rule::is_none
        | Rule::kw_is => "an operator",
        Rule::optional
        | Rule::assign
        | Rule::WHITESPACE
        | Rule::COMMENT
        | Rule::digits
        | Rule::ident_char
        | Rule::keyword => "",
    }
}
