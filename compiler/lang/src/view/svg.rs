//! A scene as an SVG drawing: one file that needs nothing else, light or dark as its reader prefers.
//!
//! Given a scene, it returns the whole text. The same scene gives the same text; whatever stands in a card is escaped.

use std::fmt::Write;

use super::layout::measure::{self, Block, Style};
use super::layout::place::{path, tenth};
use super::layout::plan::Item;
use super::layout::{Layout, Side, layout};
use super::scene::{Frame, Kind, Node, Repeat, Scene, Shape};

/// Colours and fonts of a drawing.
pub(super) const STYLE: &str = include_str!("page/drawing.css");
/// The colours of a dark one.
pub(super) const DARK: &str = include_str!("page/dark.css");

/// The drawing of a scene.
pub fn svg(scene: &Scene) -> String {
    let layout = layout(scene);
    let (legend, legend_end) = legend(scene);
    let (width, height) = (layout.placed[0].width.max(360.0).max(legend_end), layout.placed[0].height + TOP);
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"drawing\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\" aria-label=\"{}\">\n<style>\n{STYLE}@media (prefers-color-scheme: dark) {{ .drawing {{\n{DARK}}} }}\n</style>\n",
        escape(&format!("{}: {}", scene.title, scene.stage))
    );
    let _ = writeln!(out, "<rect width=\"{width}\" height=\"{height}\" fill=\"var(--paper)\"/>");
    let _ = writeln!(
        out,
        "<text class=\"caption\" x=\"14\" y=\"30\">{}</text>",
        escape(&measure::shorten(&scene.title, 60))
    );
    let _ = writeln!(out, "<text class=\"caption-about\" x=\"14\" y=\"48\">{}</text>", escape(&about(scene)));
    out.push_str(&legend);
    let _ = writeln!(out, "<g transform=\"translate(0 {TOP})\">");
    drawing(scene, &layout, &mut out);
    out.push_str("</g>\n</svg>\n");
    out
}

/// Height of the caption.
const TOP: f64 = 84.0;

/// What stands under the title.
pub(super) fn about(scene: &Scene) -> String {
    let what = match scene.stage.as_str() {
        "arch" => "architecture: one box a module or an equation",
        "graph" => "graph: one box an operation",
        "fused" => "fused graph: one box a kernel",
        other => other,
    };
    match scene.frames.first().map(|f| f.parameters) {
        Some(n) if n > 0 => format!("{}, {what}", measure::count(n)),
        _ => what.to_owned(),
    }
}

/// The kinds that occur, each with its colour.
pub(super) fn kinds(scene: &Scene) -> Vec<(Kind, &'static str)> {
    let words = |kind| match kind {
        Kind::Input => "input",
        Kind::Output => "output",
        Kind::Product => "product with weights",
        Kind::Attention => "attention",
        Kind::Rows => "token by token",
        Kind::Lookup => "lookup",
        Kind::Cache => "kept for later tokens",
        Kind::Other => "other",
    };
    let occurs = |kind: &Kind| scene.nodes.iter().any(|n| n.kind == *kind);
    Kind::ALL.into_iter().filter(occurs).map(|k| (k, words(k))).collect()
}

/// What colours mean, and where that ends.
fn legend(scene: &Scene) -> (String, f64) {
    let mut out = String::new();
    let mut x = 14.0;
    for (kind, words) in kinds(scene) {
        let _ = write!(
            out,
            "<g class=\"{}\"><rect class=\"face\" x=\"{x}\" y=\"60\" width=\"11\" height=\"11\" rx=\"3\"/><text class=\"line\" x=\"{}\" y=\"69.5\">{words}</text></g>",
            kind.name(),
            x + 16.0
        );
        x = tenth(x + 30.0 + words.len() as f64 * 6.0);
    }
    let _ = writeln!(
        out,
        "<rect class=\"chip\" x=\"{x}\" y=\"61\" width=\"9\" height=\"9\" rx=\"2\"/><text class=\"line\" x=\"{}\" y=\"69.5\">weight</text>",
        x + 15.0
    );
    (out, tenth(x + 15.0 + "weight".len() as f64 * 6.0 + 14.0))
}

/// The frames, nodes and wires of a scene, as elements of an SVG drawing.
pub(super) fn drawing(scene: &Scene, layout: &Layout, out: &mut String) {
    Drawing { scene, layout }.frame(0, (0.0, 0.0), out);
}

struct Drawing<'d> {
    scene: &'d Scene,
    layout: &'d Layout,
}

impl Drawing<'_> {
    fn frame(&self, f: usize, (x, y): (f64, f64), out: &mut String) {
        let (frame, placed, plan) = (&self.scene.frames[f], &self.layout.placed[f], &self.layout.plans[f]);
        let shut = if frame.closed { " shut" } else { "" };
        let label = if f == 0 { self.scene.title.clone() } else { spoken(frame) };
        let role = if f == 0 { "" } else { " role=\"group\" tabindex=\"0\"" };
        let _ = writeln!(
            out,
            "<g class=\"frame mark-{}{shut}\" id=\"f{f}\" transform=\"translate({} {})\"{role} aria-label=\"{}\">",
            frame.mark.name(),
            tenth(x),
            tenth(y),
            escape(&label)
        );
        let shown = |is: bool| if is { "" } else { " display=\"none\"" };
        let _ = writeln!(out, "<g class=\"open\"{}>", shown(!frame.closed));
        if f > 0 {
            if frame.repeat.as_ref().is_some_and(|r| r.times > 1) {
                // The edges of two more sheets behind.
                for shift in [8, 4] {
                    let _ = writeln!(
                        out,
                        "<path class=\"stack\" data-shift=\"{shift}\" d=\"{}\"/>",
                        sheet(placed.width, placed.height, f64::from(shift))
                    );
                }
            }
            let _ = writeln!(
                out,
                "<rect class=\"box\" width=\"{}\" height=\"{}\" rx=\"10\"/>",
                placed.width, placed.height
            );
        }
        out.push_str("<g class=\"wires\">\n");
        self.wires(f, out);
        out.push_str("</g>\n");
        for (i, item) in plan.items.iter().enumerate() {
            match item {
                Item::Frame(child) => {
                    let width = self.width(*child);
                    self.frame(*child, (placed.x[i] - width / 2.0, placed.y[i]), out);
                }
                Item::Node(node) => {
                    let block = &self.layout.nodes[*node];
                    self.node(*node, (placed.x[i] - block.width / 2.0, placed.y[i]), out);
                }
                Item::Bend | Item::Entry | Item::Exit => {}
            }
        }
        if f > 0 {
            header(frame, placed.width, out);
        }
        out.push_str("</g>\n");
        if f > 0 {
            let block = &self.layout.closed[f];
            let _ = writeln!(out, "<g class=\"closed\"{}>", shown(frame.closed));
            let _ = writeln!(
                out,
                "<rect class=\"face\" width=\"{}\" height=\"{}\" rx=\"8\"/>",
                tenth(block.width),
                tenth(block.height)
            );
            lines(block, out);
            out.push_str("</g>\n");
        }
        let hint = hint(frame);
        if f > 0 && !hint.is_empty() {
            let _ = writeln!(out, "<title>{}</title>", escape(&hint));
        }
        out.push_str("</g>\n");
    }

    fn width(&self, f: usize) -> f64 {
        if self.scene.frames[f].closed { self.layout.closed[f].width } else { self.layout.placed[f].width }
    }

    /// The wires of a frame, a group for each value.
    fn wires(&self, f: usize, out: &mut String) {
        let (plan, placed) = (&self.layout.plans[f], &self.layout.placed[f]);
        let mut by_value: Vec<usize> = plan.links.iter().map(|l| l.value).collect();
        by_value.dedup();
        by_value.sort_unstable();
        by_value.dedup();
        for value in by_value {
            let (mut lines, mut tips, mut label) = (String::new(), String::new(), String::new());
            for (k, link) in plan.links.iter().enumerate().filter(|(_, l)| l.value == value) {
                let route = &placed.routes[k];
                lines.push_str(&path(route));
                if self.ends_in_tip(plan.items[link.to.0]) {
                    let (x, y) = (tenth(route.to.0), tenth(route.to.1));
                    let _ = write!(tips, "M{x} {y}L{} {}H{}Z", tenth(x - 3.5), tenth(y - 7.0), tenth(x + 3.5));
                }
                let labels = self.layout.labels(f, link.from.0);
                if let Some((.., side)) = labels.into_iter().find(|l| l.1 == value).filter(|_| label.is_empty()) {
                    let text = escape(&self.scene.wires[self.layout.values[value].wire].label);
                    let (shift, anchor) = if side == Side::Left { (-5.0, "end") } else { (5.0, "start") };
                    let below = if self.is_stack(plan.items[link.from.0]) { 18.0 } else { 12.0 };
                    let (x, y) = (tenth(route.from.0 + shift), tenth(route.from.1 + below));
                    label = format!("<text class=\"type\" x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{text}</text>");
                }
            }
            let _ = writeln!(
                out,
                "<g class=\"wire\" data-v=\"{value}\"><path class=\"path\" d=\"{lines}\"/><path class=\"tip\" d=\"{tips}\"/>{label}</g>"
            );
        }
    }

    /// Whether an item is drawn as a stack of equal layers.
    fn is_stack(&self, item: Item) -> bool {
        let times = |f: usize| self.scene.frames[f].repeat.as_ref().map_or(1, |r| r.times);
        matches!(item, Item::Frame(f) if times(f) > 1)
    }

    fn ends_in_tip(&self, item: Item) -> bool {
        match item {
            Item::Node(_) => true,
            Item::Frame(f) => self.scene.frames[f].closed,
            Item::Bend | Item::Entry | Item::Exit => false,
        }
    }

    fn node(&self, n: usize, (x, y): (f64, f64), out: &mut String) {
        let (node, block) = (&self.scene.nodes[n], &self.layout.nodes[n]);
        let (w, h) = (tenth(block.width), tenth(block.height));
        let shape = match node.shape {
            Shape::Card => "card",
            Shape::Pill => "pill",
            Shape::Sign => "sign",
            Shape::Drum => "drum",
        };
        let _ = writeln!(
            out,
            "<g class=\"node {} shape-{shape} mark-{}\" id=\"n{n}\" transform=\"translate({} {})\" role=\"button\" tabindex=\"0\" aria-label=\"{}\">",
            node.kind.name(),
            node.mark.name(),
            tenth(x),
            tenth(y),
            escape(&spoken_node(node))
        );
        let _ = match node.shape {
            Shape::Drum => writeln!(
                out,
                "<path class=\"face\" d=\"M0 6A{r} 6 0 0 1 {w} 6V{b}A{r} 6 0 0 1 0 {b}Z\"/><path class=\"face\" fill-opacity=\"0\" d=\"M0 6A{r} 6 0 0 0 {w} 6\"/>",
                r = tenth(w / 2.0),
                b = tenth(h - 6.0)
            ),
            shape => {
                let r = if shape == Shape::Card { 7.0 } else { tenth(h / 2.0).min(13.0) };
                writeln!(out, "<rect class=\"face\" width=\"{w}\" height=\"{h}\" rx=\"{r}\"/>")
            }
        };
        lines(block, out);
        let mut hint = vec![node.path.clone()];
        if let Some((place, text)) = &node.equation {
            hint.push(format!("{place}: {text}"));
        }
        hint.push(node.change.clone());
        hint.retain(|line| !line.is_empty());
        if !hint.is_empty() {
            let _ = writeln!(out, "<title>{}</title>", escape(&hint.join("\n")));
        }
        out.push_str("</g>\n");
    }
}

/// The right and lower edges of a sheet behind a box of `w` by `h`, `s` to the right and down.
fn sheet(w: f64, h: f64, s: f64) -> String {
    let (right, low) = (w + s, h + s);
    format!(
        "M{w} {s}H{}Q{right} {s} {right} {}V{}Q{right} {low} {} {low}H{}Q{s} {low} {s} {}V{h}",
        right - 10.0,
        s + 10.0,
        low - 10.0,
        right - 10.0,
        s + 10.0,
        low - 10.0
    )
}

fn lines(block: &Block, out: &mut String) {
    for line in &block.lines {
        let (mut x, mut anchor) = (tenth(block.width / 2.0), "middle");
        if line.style == Style::Weight {
            (x, anchor) = (24.0, "start");
            let _ = writeln!(
                out,
                "<rect class=\"chip\" x=\"11\" y=\"{}\" width=\"8\" height=\"8\" rx=\"2\"/>",
                tenth(line.y - 8.0)
            );
        }
        let _ = writeln!(
            out,
            "<text class=\"{}\" x=\"{x}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
            line.style.name(),
            tenth(line.y),
            escape(&line.text)
        );
    }
}

/// The name of an open frame, over its wires.
fn header(frame: &Frame, width: f64, out: &mut String) {
    let times = frame.repeat.as_ref().map(Repeat::text).unwrap_or_default();
    let name = measure::shorten(&frame.name, 44);
    let module = frame.module.split('(').next().filter(|m| *m != frame.name).unwrap_or_default();
    let module = measure::shorten(module, 30);
    let slices = frame.slices.as_str();
    let module = [module.as_str(), slices].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join(" · ");
    let back = 34.0 + (name.chars().count() + times.chars().count()) as f64 * 8.2 + module.chars().count() as f64 * 6.4;
    let _ = write!(
        out,
        "<g class=\"head\"><rect x=\"4\" y=\"3\" width=\"{}\" height=\"20\" fill=\"transparent\"/>\
         <text class=\"name\" x=\"10\" y=\"17.5\">▾ {}<tspan class=\"times\">{times}</tspan><tspan class=\"module\" dx=\"8\">{}</tspan></text>",
        tenth(back.min(width - 10.0)),
        escape(&name),
        escape(&module)
    );
    let _ = writeln!(
        out,
        "<text class=\"count\" x=\"{}\" y=\"17.5\" text-anchor=\"end\">{}</text></g>",
        tenth(width - 10.0),
        escape(&measure::about(frame))
    );
}

fn hint(frame: &Frame) -> String {
    let mut hint = vec![frame.path.clone(), frame.module.clone()];
    if let Some(repeat) = &frame.repeat {
        hint.push(format!("layers {}", repeat.which));
    }
    hint.push(frame.slices.clone());
    hint.push(frame.change.clone());
    hint.retain(|line| !line.is_empty());
    hint.join("\n")
}

fn spoken(frame: &Frame) -> String {
    let title = measure::title(frame);
    if frame.parameters > 0 {
        format!("module {title}, {}", measure::count(frame.parameters))
    } else {
        format!("module {title}")
    }
}

fn spoken_node(node: &Node) -> String {
    let mut parts = vec![format!("{} {}", node.kind.name(), node.title)];
    if !node.path.is_empty() {
        parts.push(node.path.clone());
    }
    parts.extend(node.results.iter().take(2).cloned());
    parts.join(", ")
}

/// Text as it stands in XML, in elements and in quoted attributes. What XML cannot hold becomes a replacement character.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control()
                || matches!(c, '\u{fffe}' | '\u{ffff}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                out.push('\u{fffd}');
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn nothing_in_a_text_is_markup() {
        assert_eq!(escape("a<script>\"'&\u{0}\u{202e}"), "a&lt;script&gt;&quot;&#39;&amp;\u{fffd}\u{fffd}");
    }
}
