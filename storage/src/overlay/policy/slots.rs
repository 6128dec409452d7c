//! How much the origin sends at once, found from its goodput alone.

use super::Millis;

/// Goodput must grow by this factor for one more slot to have been worth it.
const SLOT_GAIN: f64 = 1.05;

/// How many leases the origin sends at once: grows while goodput does, halves when the origin complains.
#[derive(Clone, Debug)]
pub struct Slots {
    pub now: u32,
    pub max: u32,
    window_start: Millis,
    pub done: u32,
    pub limited: bool,
    best: f64,
    grew: bool,
    hold: u32,
    /// Doubling until the first time that more slots were not worth it.
    eager: bool,
}

impl Slots {
    const WINDOW_MS: Millis = 400;
    /// A window spans several leases, so that slots just added have had time to bring something.
    const WINDOW_LEASES: f64 = 2.0;

    pub fn new(now: u32, max: u32) -> Self {
        let max = max.max(1);
        Self {
            now: now.min(max),
            max,
            window_start: 0,
            done: 0,
            limited: false,
            best: 0.0,
            grew: false,
            hold: 0,
            eager: true,
        }
    }

    pub fn turn(&mut self, now: Millis, lease_ms: f64) {
        let span = now.saturating_sub(self.window_start);
        let window = Self::WINDOW_MS.max((lease_ms * Self::WINDOW_LEASES) as Millis);
        if span < window || self.done < self.now {
            return;
        }
        let goodput = f64::from(self.done) / span as f64;
        let worth = goodput >= self.best * SLOT_GAIN;
        if self.grew && !worth {
            self.now = if self.eager { self.now.div_ceil(2) } else { (self.now - 1).max(1) };
            self.hold = 10;
            self.eager = false;
        }
        self.grew = false;
        if self.hold > 0 {
            self.hold -= 1;
        } else if self.limited && self.now < self.max {
            self.now = if self.eager { (self.now * 2).min(self.max) } else { self.now + 1 };
            self.grew = true;
        }
        self.best = if worth { goodput } else { 0.9 * self.best + 0.1 * goodput };
        (self.window_start, self.done, self.limited) = (now, 0, false);
    }

    pub fn complain(&mut self, now: Millis) {
        self.now = (self.now / 2).max(1);
        self.hold = 5;
        self.eager = false;
        (self.window_start, self.done, self.grew) = (now, 0, false);
    }
}
