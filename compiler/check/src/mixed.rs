//! A plan that holds each unit of matrices in one of several formats, so that the least is lost for so many bits a weight.
//!
//! Bits a weight are those of all matrices of products, scales and minima counted, over the elements of these matrices. What is lost is taken
//! to be the sum of what each unit loses by itself.

use xfc_lang::graph::blocks::Blocks;
use xfc_lang::passes::quantise::Plan;

use crate::allocate::{Way, allocate};
use crate::units::{Unit, plan};

/// What each unit loses in each format.
#[derive(Clone, Debug)]
pub struct Sensitivity {
    /// The units.
    pub units: Vec<Unit>,
    /// The formats; `None`: not in blocks.
    pub formats: Vec<Option<Blocks>>,
    /// For each unit and format what is lost: nats, or an error. A finite number.
    pub costs: Vec<Vec<f64>>,
    /// Bits of a weight that is not in blocks.
    pub plain_bits: u64,
}

/// A format for each unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    /// Numbers of formats.
    pub formats: Vec<usize>,
    /// Bits a weight.
    pub bits: f64,
    /// The sum of what the units lose.
    pub cost: f64,
}

impl Sensitivity {
    /// Bits of a unit in a format.
    pub fn bits(&self, unit: usize, format: usize) -> u64 {
        self.units[unit].bits(self.formats[format], self.plain_bits)
    }

    /// Elements of all matrices.
    pub fn weights(&self) -> u64 {
        self.units.iter().map(Unit::weights).sum()
    }

    /// The fewest and the most bits a weight that the formats give.
    pub fn range(&self) -> (f64, f64) {
        let all = |pick: fn(u64, u64) -> u64| -> u64 {
            let of = |u| (0..self.formats.len()).map(|f| self.bits(u, f)).reduce(pick).unwrap_or(0);
            (0..self.units.len()).map(of).sum()
        };
        let weights = self.weights().max(1) as f64;
        (all(u64::min) as f64 / weights, all(u64::max) as f64 / weights)
    }

    /// The mixture that loses least with at most so many bits a weight; `None` where there is none.
    pub fn best(&self, bits: f64) -> Option<Mixture> {
        let way = |u, f: usize| Way { bits: self.bits(u, f), cost: self.costs[u][f] };
        let ways = (0..self.units.len()).map(|u| (0..self.formats.len()).map(|f| way(u, f)).collect());
        let formats = allocate(&ways.collect::<Vec<Vec<Way>>>(), self.budget(bits))?;
        Some(self.mixture(formats))
    }

    /// The same format for all units, of those within so many bits a weight the one that loses least.
    pub fn best_uniform(&self, bits: f64) -> Option<Mixture> {
        let all = (0..self.formats.len()).map(|f| self.mixture(vec![f; self.units.len()]));
        let within = |m: &Mixture| m.bits * self.weights() as f64 <= self.budget(bits) as f64 + 0.5;
        all.filter(within).min_by(|a, b| a.cost.total_cmp(&b.cost))
    }

    /// What is asked for, in bits.
    fn budget(&self, bits: f64) -> u64 {
        // A number of bits that is written in decimals may be a little less than what it means.
        (bits * self.weights() as f64 * (1.0 + 1e-12)) as u64
    }

    fn mixture(&self, formats: Vec<usize>) -> Mixture {
        let each = || formats.iter().enumerate();
        let bits: u64 = each().map(|(u, f)| self.bits(u, *f)).sum();
        let cost = each().map(|(u, f)| self.costs[u][*f]).sum();
        Mixture { bits: bits as f64 / self.weights().max(1) as f64, cost, formats }
    }

    /// The plan of a mixture.
    pub fn plan(&self, mixture: &Mixture) -> Plan {
        let held: Vec<Option<Blocks>> = mixture.formats.iter().map(|f| self.formats[*f]).collect();
        plan(&self.units, &held)
    }

    /// The plan that holds one unit in a format and nothing else.
    pub fn plan_of_one(&self, unit: usize, format: usize) -> Plan {
        let held: Vec<Option<Blocks>> =
            (0..self.units.len()).map(|u| self.formats[format].filter(|_| u == unit)).collect();
        plan(&self.units, &held)
    }
}
