//! How much the origin sends at once, found from its goodput alone.

use super::Millis;

/// Slots grow by this factor, at first and later; to have been worth it goodput must grow by this share as much.
const GROWTH: (f64, f64) = (2.0, 1.25);
const WORTH: f64 = 0.3;
/// Smoothed time to the first byte beyond which the origin is taken to be full: so many times its least, and so much more.
const SLOW: f64 = 3.0;
const SLOW_MS: f64 = 250.0;

/// How many leases the origin sends at once: grows while goodput does, halves when the origin complains.
#[derive(Clone, Debug)]
pub struct Slots {
    pub now: u32,
    pub max: u32,
    /// Leases that are being sent.
    pub sending: u32,
    window_start: Millis,
    /// `sending`, summed up over the milliseconds of the window until `counted`.
    in_service: f64,
    counted: Millis,
    /// Leases that were sent in the window; those also begun in it, and the milliseconds that they took together.
    sent: u32,
    served: u32,
    service_ms: f64,
    pub limited: bool,
    best: f64,
    grew: bool,
    /// The first window is past, in which bytes only began to flow.
    warm: bool,
    hold: u32,
    /// Doubling until the first time that more slots were not worth it.
    eager: bool,
    complained: Option<Millis>,
    /// Milliseconds to the origin's first byte: smoothed, and the least seen.
    first_byte: f64,
    first_byte_least: f64,
}

impl Slots {
    const WINDOW_MS: Millis = 400;
    /// A window spans several leases, so that slots just added have had time to bring something.
    const WINDOW_LEASES: f64 = 2.0;
    /// A window that spans fewer leases is too short to count them.
    const FEW: f64 = 2.5;

    pub fn new(now: u32, max: u32) -> Self {
        let max = max.max(1);
        Self {
            now: now.min(max),
            max,
            sending: 0,
            window_start: 0,
            in_service: 0.0,
            counted: 0,
            sent: 0,
            served: 0,
            service_ms: 0.0,
            limited: false,
            best: 0.0,
            grew: false,
            warm: false,
            hold: 0,
            eager: true,
            complained: None,
            first_byte: 0.0,
            first_byte_least: f64::INFINITY,
        }
    }

    pub fn is_free(&self) -> bool {
        self.sending < self.now
    }

    fn passed(&mut self, now: Millis) {
        self.in_service += f64::from(self.sending) * now.saturating_sub(self.counted) as f64;
        self.counted = now;
    }

    /// A lease takes a slot.
    pub fn begin(&mut self, now: Millis) {
        self.passed(now);
        self.sending += 1;
    }

    /// A lease was taken back before it was sent.
    pub fn give_up(&mut self) {
        self.sending = self.sending.saturating_sub(1);
    }

    /// A lease that began at `since` was sent; leases take `lease_ms` until they are stored.
    pub fn sent(&mut self, now: Millis, since: Millis, lease_ms: f64) {
        self.passed(now);
        self.sending = self.sending.saturating_sub(1);
        self.sent += 1;
        // What was begun before is no measure of the slots that were added since.
        if since >= self.window_start {
            self.served += 1;
            self.service_ms += now.saturating_sub(since) as f64;
        }
        self.turn(now, lease_ms);
    }

    fn begin_window(&mut self, now: Millis) {
        (self.window_start, self.in_service, self.counted) = (now, 0.0, now);
        (self.sent, self.served, self.service_ms) = (0, 0, 0.0);
    }

    /// Judges the window, if it is over.
    pub fn turn(&mut self, now: Millis, lease_ms: f64) {
        self.passed(now);
        let span = now.saturating_sub(self.window_start);
        let window = Self::WINDOW_MS.max((lease_ms * Self::WINDOW_LEASES) as Millis);
        if span < window || self.served < self.now {
            return;
        }
        let (span, service_ms) = (span as f64, self.service_ms / f64::from(self.served));
        // Leases that were begun together end together: of few in a row the count is off by half with where the window happens to
        // end. Then by Little's law, which wants times far above the clock's millisecond.
        let few = service_ms * Self::FEW > span;
        let goodput = if few { self.in_service / span / service_ms } else { f64::from(self.sent) / span };
        if !std::mem::replace(&mut self.warm, true) {
            return self.begin_window(now);
        }
        let growth = if self.eager { GROWTH.0 } else { GROWTH.1 };
        let worth = goodput >= self.best * (1.0 + (growth - 1.0) * WORTH);
        if self.grew && !worth {
            self.now = ((f64::from(self.now) / growth).round() as u32).max(1);
            self.hold = 3;
            self.eager = false;
        }
        self.grew = false;
        if self.hold > 0 {
            self.hold -= 1;
        } else if self.limited && self.now < self.max {
            let growth = if self.eager { GROWTH.0 } else { GROWTH.1 };
            self.now = ((f64::from(self.now) * growth).ceil() as u32).min(self.max);
            self.grew = true;
        }
        self.best = if worth { goodput } else { 0.5 * self.best + 0.5 * goodput };
        self.limited = false;
        self.begin_window(now);
    }

    pub fn answered(&mut self, now: Millis, took: f64) {
        self.first_byte = if self.first_byte == 0.0 { took } else { 0.8 * self.first_byte + 0.2 * took };
        // The least is forgotten slowly: routes and stores change.
        self.first_byte_least = (self.first_byte_least * 1.001).min(took.max(1.0));
        if self.first_byte > self.first_byte_least * SLOW + SLOW_MS {
            self.complain(now);
        }
    }

    /// Halves; what was refused together counts once.
    pub fn complain(&mut self, now: Millis) {
        if self.complained.is_some_and(|at| now.saturating_sub(at) < Self::WINDOW_MS) {
            return;
        }
        self.complained = Some(now);
        self.first_byte = 0.0;
        self.now = (self.now / 2).max(1);
        self.hold = 5;
        self.eager = false;
        self.grew = false;
        self.begin_window(now);
    }
}
