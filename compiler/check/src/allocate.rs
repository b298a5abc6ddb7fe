//! Chooses one of several ways for each of many things, so that the least is lost for so many bits.

/// One way: what it takes, and what is lost by it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Way {
    /// Bits.
    pub bits: u64,
    /// What is lost, a finite number.
    pub cost: f64,
}

/// Sums that are kept of each prefix of the things, at most; with fewer the choice is exact.
const MOST_SUMS: usize = 4096;

/// What the ways chosen so far come to, and the last of them.
#[derive(Clone, Copy, Debug)]
struct Sum {
    bits: u64,
    cost: f64,
    /// Which sum of the things before it is extended, and by which way.
    from: u32,
    way: u32,
}

/// The way of each thing with which the sum of costs is least while the sum of bits is at most `budget`; `None` where no ways have so few
/// bits. Of sums that none beats in both bits and cost at most `MOST_SUMS` are carried on, so that of very many things the result may be
/// off by that part of the budget.
pub fn allocate(things: &[Vec<Way>], budget: u64) -> Option<Vec<usize>> {
    // The least that things from each on take.
    let mut rest = vec![0u64; things.len() + 1];
    for (i, ways) in things.iter().enumerate().rev() {
        rest[i] = rest[i + 1].checked_add(ways.iter().map(|way| way.bits).min()?)?;
    }
    let mut steps: Vec<Vec<Sum>> = vec![vec![Sum { bits: 0, cost: 0.0, from: 0, way: 0 }]];
    for (i, ways) in things.iter().enumerate() {
        let room = budget.checked_sub(rest[i + 1])?;
        let before = steps.last()?;
        let extended = before.iter().enumerate().flat_map(|(from, sum)| {
            ways.iter().enumerate().map(move |(w, way)| Sum {
                bits: sum.bits.saturating_add(way.bits),
                cost: sum.cost + way.cost,
                from: from as u32,
                way: w as u32,
            })
        });
        let mut sums: Vec<Sum> = extended.filter(|sum| sum.bits <= room).collect();
        sums.sort_by(|a, b| (a.bits, a.cost).partial_cmp(&(b.bits, b.cost)).unwrap_or(a.bits.cmp(&b.bits)));
        // More bits are worth it only for less cost.
        let mut least = f64::INFINITY;
        sums.retain(|sum| {
            let better = sum.cost < least;
            least = least.min(sum.cost);
            better
        });
        steps.push(thinned(sums));
    }
    let mut at = steps.last()?.len().checked_sub(1)?;
    let mut chosen = Vec::with_capacity(things.len());
    for sums in steps[1..].iter().rev() {
        let sum = sums.get(at)?;
        chosen.push(sum.way as usize);
        at = sum.from as usize;
    }
    chosen.reverse();
    Some(chosen)
}

/// Of sums with ascending bits and descending costs, the best of each part of the range of bits; all where they are few.
fn thinned(sums: Vec<Sum>) -> Vec<Sum> {
    let (Some(first), Some(last)) = (sums.first(), sums.last()) else { return sums };
    if sums.len() <= MOST_SUMS {
        return sums;
    }
    let (low, range) = (u128::from(first.bits), u128::from(last.bits - first.bits) + 1);
    let part = |sum: &Sum| (u128::from(sum.bits) - low) * MOST_SUMS as u128 / range;
    let next = sums.iter().skip(1).map(Some).chain([None]);
    let kept = sums.iter().zip(next).filter(|(sum, next)| next.is_none_or(|next| part(sum) != part(next)));
    kept.map(|(sum, _)| *sum).collect()
}
