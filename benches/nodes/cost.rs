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
pub(crate) const BYTES_A_RECORD: f64 = 1_083.0;
pub(crate) const INSERT: Cost = cost(165.0, 939.0);
pub(crate) const UPDATE: Cost = cost(137.0, 1_063.0);
/// Of a ready one of the own node.
pub(crate) const CLAIM: Cost = cost(240.0, 1_168.0);
pub(crate) const GET: Cost = cost(83.0, 988.0);
pub(crate) const REMOVE: Cost = cost(52.0, 156.0);
pub(crate) const DUE: Cost = cost(39.0, 180.0);
pub(crate) const COUNTS: Cost = cost(22.0, 181.0);
pub(crate) const ADMIT: Cost = cost(344.0, 340.0);
pub(crate) const ANNOUNCE: Cost = cost(71.0, 378.0);
/// For each node.
pub(crate) const NODES: Growing = Growing { fixed: cost(39.0, 355.0), each: cost(0.811, 221.0) };
/// For each own record.
pub(crate) const OWN: Growing = Growing { fixed: cost(39.0, 99.0), each: cost(4.287, 793.0) };
