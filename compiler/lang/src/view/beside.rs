//! Two scenes that are compared as one drawing.

use super::scene::{Frame, Mark, Node, Scene, Wire};

/// Two marked scenes as one drawing, the first at the left.
pub fn side_by_side(a: Scene, b: Scene, names: [&str; 2]) -> Scene {
    let stage = if a.stage == b.stage { a.stage.clone() } else { format!("{} and {}", a.stage, b.stage) };
    let title = format!("{} and {}", names[0], names[1]);
    let mut scene = Scene { title, stage, frames: vec![Frame::default()], ..Scene::default() };
    let mut parts: Vec<(usize, Scene, &str)> = vec![(0, a, names[0]), (0, b, names[1])];
    // Frames come after those around them, level by level.
    let mut places: Vec<Vec<usize>> = parts.iter().map(|(_, s, _)| vec![0; s.frames.len()]).collect();
    let depth = |s: &Scene, f: usize| s.around(f).count();
    let deepest = parts.iter().flat_map(|(_, s, _)| (0..s.frames.len()).map(|f| depth(s, f))).max().unwrap_or(0);
    for level in 1..=deepest {
        for (k, (_, part, name)) in parts.iter().enumerate() {
            for f in (0..part.frames.len()).filter(|f| depth(part, *f) == level) {
                places[k][f] = scene.frames.len();
                let mut frame = part.frames[f].clone();
                frame.parent = Some(frame.parent.map_or(0, |p| places[k][p]));
                if f == 0 {
                    frame.name = (*name).to_owned();
                    frame.mark = Mark::Same;
                }
                scene.frames.push(frame);
            }
        }
    }
    for (k, (first, part, _)) in parts.iter_mut().enumerate() {
        *first = scene.nodes.len();
        let shift = |(node, port): (usize, usize)| (node + *first, port);
        scene.nodes.extend(part.nodes.drain(..).map(|n| Node { frame: places[k][n.frame], ..n }));
        scene.wires.extend(part.wires.drain(..).map(|w| Wire { from: shift(w.from), to: shift(w.to), ..w }));
    }
    scene
}
