//! Who serves a kept mount: one daemon after the other, and no request is forgotten in between.
//!
//! ```text
//!  next ──► stands by
//!  former ──made to end──► half dead ──────► ended
//!              │ from here on it takes         │ had a thread of it just taken a request?
//!              ▼ no more requests              ▼ all that was taken is asked for once more
//!  next ──► serves, and has all asked for that the former had taken
//! ```
//!
//! Knows nothing of processes: `tests/prove_schedules` has daemons of another kind die at every moment.

/// What daemons are to whoever has them follow each other.
pub(super) trait Daemons {
    /// One that is prepared, or serves. Dropping it ends it.
    type Daemon;
    /// One that takes no more requests, and has not ended yet.
    type HalfDead;
    /// Why one does not serve.
    type Failure;

    /// Has it ready to serve when `former` has ended, even if nobody tells it to.
    ///
    /// # Errors
    ///
    /// When it is not: it has ended.
    fn stand_by(
        &self,
        daemon: &mut Self::Daemon,
        former: &Self::Daemon,
    ) -> Result<(), Self::Failure>;

    /// Lets it take requests. Those that others have taken and not answered are asked for again.
    ///
    /// # Errors
    ///
    /// When it does not; it may have begun to.
    fn serve(&self, daemon: &mut Self::Daemon) -> Result<(), Self::Failure>;

    /// Has it end, as it likes at first.
    fn retire(&self, daemon: Self::Daemon) -> Option<Self::HalfDead>;

    /// Has it end at once.
    fn end(&self, daemon: Self::Daemon) -> Option<Self::HalfDead>;

    /// Whether it has ended now.
    fn has_ended(&self, daemon: &Self::HalfDead) -> bool;

    /// Has all requests asked for again that were taken and not answered.
    fn resend(&self);
}

/// Whoever serves, and who did.
#[derive(Debug)]
pub(super) struct Succession<D: Daemons> {
    serving: Option<D::Daemon>,
    half_dead: Vec<D::HalfDead>,
}

impl<D: Daemons> Succession<D> {
    /// Begins with the first daemon.
    pub(super) fn of(first: D::Daemon) -> Self {
        Self {
            serving: Some(first),
            half_dead: Vec::new(),
        }
    }

    /// Whoever serves.
    pub(super) fn serving(&self) -> Option<&D::Daemon> {
        self.serving.as_ref()
    }

    /// Whoever serves.
    pub(super) fn serving_mut(&mut self) -> Option<&mut D::Daemon> {
        self.serving.as_mut()
    }

    /// Whether all former daemons have ended.
    pub(super) fn is_settled(&self) -> bool {
        self.half_dead.is_empty()
    }

    /// Ends whoever serves; nobody does then.
    pub(super) fn dismiss(&mut self, daemons: &D) {
        if let Some(daemon) = self.serving.take() {
            self.half_dead.extend(daemons.end(daemon));
        }
    }

    /// Has `next`, which is prepared, serve instead of whoever did.
    ///
    /// # Errors
    ///
    /// When it does not: then nobody serves, or still whoever did.
    pub(super) fn follow(&mut self, daemons: &D, mut next: D::Daemon) -> Result<(), D::Failure> {
        if let Some(former) = self.serving.take() {
            if let Err(failure) = daemons.stand_by(&mut next, &former) {
                self.serving = Some(former);
                self.half_dead.extend(daemons.end(next));
                return Err(failure);
            }
            self.half_dead.extend(daemons.retire(former));
        }
        match daemons.serve(&mut next) {
            Ok(()) => {
                self.serving = Some(next);
                Ok(())
            }
            Err(failure) => {
                // It may have taken requests.
                self.half_dead.extend(daemons.end(next));
                Err(failure)
            }
        }
    }

    /// Lets go of former daemons that have ended. To be called until all have.
    pub(super) fn bury(&mut self, daemons: &D) {
        let before = self.half_dead.len();
        self.half_dead.retain(|daemon| !daemons.has_ended(daemon));
        // In case one of them was just taking a request when it was told not to.
        if self.half_dead.len() < before {
            daemons.resend();
        }
    }
}
