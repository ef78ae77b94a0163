//! What each call costs Valkey: its own time and the bytes both ways.
//!
//! Source: `cargo bench --all-features --bench nodes -- --measure`, which reads
//! `INFO commandstats` and `INFO stats` after some hundred calls of the real scripts
//! with real records; docs/benchmarks.md says on what machine.

/// One call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// The server's time, in microseconds.
    pub(crate) micros: f64,
    /// Bytes both ways.
    pub(crate) bytes: f64,
}

impl Cost {
    /// So many of them.
    pub(crate) const fn times(self, count: f64) -> Self {
        Self { micros: self.micros * count, bytes: self.bytes * count }
    }
}

/// A call that costs more with what there is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Growing {
    /// With nothing there.
    pub(crate) fixed: Cost,
    /// For each item more.
    pub(crate) each: Cost,
}

impl Growing {
    /// With so many items.
    pub(crate) const fn for_items(self, count: f64) -> Cost {
        Cost {
            micros: self.fixed.micros + self.each.micros * count,
            bytes: self.fixed.bytes + self.each.bytes * count,
        }
    }
}

const fn cost(micros: f64, bytes: f64) -> Cost {
    Cost { micros, bytes }
}

/// Memory of a record with its indices.
pub(crate) const BYTES_A_RECORD: f64 = 1_061.0;
pub(crate) const INSERT: Cost = cost(158.0, 971.0);
pub(crate) const UPDATE: Cost = cost(125.0, 1_062.0);
/// Of a ready one of the own node.
pub(crate) const CLAIM: Cost = cost(259.0, 1_166.0);
pub(crate) const GET: Cost = cost(63.0, 1_016.0);
pub(crate) const REMOVE: Cost = cost(74.0, 143.0);
pub(crate) const DUE: Cost = cost(21.0, 167.0);
pub(crate) const COUNTS: Cost = cost(22.0, 168.0);
pub(crate) const ADMIT: Cost = cost(120.0, 320.0);
pub(crate) const ANNOUNCE: Cost = cost(113.0, 365.0);
pub(crate) const BEAT: Cost = cost(94.0, 169.0);
/// With a thousand nodes; for each report that was said since.
pub(crate) const NODES: Growing = Growing { fixed: cost(56.0, 176.0), each: cost(3.26, 194.0) };
/// With a thousand own records; for each that has changed since.
pub(crate) const OWN: Growing = Growing { fixed: cost(39.0, 187.0), each: cost(5.79, 878.0) };
