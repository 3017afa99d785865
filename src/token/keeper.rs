//! Keeps a token: opens it, notices that it is gone or hangs, and brings it back.
//!
//! ```text
//! open ──► here ──lost──► away ──► finalize, initialise, find, log in, prove ──► here
//!                          ▲────────────── not yet: wait longer ◄──┘
//! ```
//!
//! A module can remember that its token was away until it is finalized, so coming back is always a
//! fresh start: all sessions closed first, because numbers of sessions are given again. The token that
//! comes back must be the same, with the same key, and prove that it has it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::pool::Busy;
use super::{Expected, Identity, KeyAttributes, ObjectError, Pool, Token, TokenError, TokenOptions};
use crate::ledger::key::PublicKey;

/// The first wait before a token is looked for again, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The token of a running daemon, whether it is there or not.
pub struct Keeper {
    origin: String,
    state: Mutex<State>,
    /// Since when the library is being opened.
    opening: Busy,
    /// Wakes who waits for the next attempt.
    changed: Condvar,
}

/// Another token, or another key on this one, that is open beside it and may take its place.
pub struct Candidate {
    options: TokenOptions,
    key: PublicKey,
    identity: Identity,
    attributes: KeyAttributes,
    /// Until it is closed.
    pool: Option<Arc<Pool>>,
}

impl Candidate {
    /// Its key.
    #[must_use]
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// What it says it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// How it says it protects the key.
    #[must_use]
    pub fn key_attributes(&self) -> &KeyAttributes {
        &self.attributes
    }

    /// Its threads, which sign with its key, until it is closed.
    #[must_use]
    pub fn pool(&self) -> Option<&Pool> {
        self.pool.as_deref()
    }

    /// Closes its sessions. What the key is stays known.
    pub fn close(&mut self) {
        self.pool = None;
    }
}

struct State {
    options: TokenOptions,
    key: PublicKey,
    pool: Option<Arc<Pool>>,
    identity: Option<Identity>,
    /// Of the threads that there are, or were, until there are others: who hangs, hangs on.
    busy: Vec<Arc<Busy>>,
    closing: bool,
}

impl Keeper {
    /// A token that is not open yet. It must have `key` and prove so for `origin`.
    #[must_use]
    pub fn new(options: TokenOptions, key: PublicKey, origin: &str) -> Self {
        let state = State { options, key, pool: None, identity: None, busy: Vec::new(), closing: false };
        Keeper {
            origin: origin.into(),
            state: Mutex::new(state),
            opening: Busy::new(),
            changed: Condvar::new(),
        }
    }

    /// Opens it, once.
    ///
    /// # Errors
    /// [`TokenError`]; it is as it was before.
    pub fn open(&self) -> Result<Arc<Pool>, TokenError> {
        let (options, key) = {
            let state = self.state();
            (state.options.clone(), state.key.clone())
        };
        let token = self.opening.during(|| {
            let mut token = Token::open(&options)?;
            let found = token.public_key();
            if *found != key {
                return Err(TokenError::OtherKey { expected: key.id(), found: found.id() });
            }
            token.prove_possession(&self.origin)?;
            Ok(token)
        })?;
        self.take(token)
    }

    /// The token that is open already, which has the key.
    ///
    /// # Errors
    /// [`TokenError::Threads`].
    pub fn take(&self, token: Token) -> Result<Arc<Pool>, TokenError> {
        let identity = token.identity().clone();
        let key = token.public_key().id();
        tracing::info!(token = %identity, library = token.library(), %key, "unlocked the key");
        let pool = Arc::new(Pool::start(token).map_err(TokenError::Threads)?);
        let mut state = self.state();
        state.busy = pool.busy().to_vec();
        state.pool = Some(pool.clone());
        state.identity = Some(identity);
        Ok(pool)
    }

    /// Opens another token, or another key on this one, beside it, and has it prove itself.
    ///
    /// # Errors
    /// [`TokenError`]; all is as it was before.
    pub fn candidate(&self, mut options: TokenOptions) -> Result<Candidate, TokenError> {
        let beside = self.pool();
        let token = self.opening.during(|| -> Result<Token, TokenError> {
            let mut token = Token::open_beside(&options, beside.as_deref())?;
            token.prove_possession(&self.origin)?;
            Ok(token)
        })?;
        let (key, identity) = (token.public_key().clone(), token.identity().clone());
        let attributes = *token.key_attributes();
        let state = self.state();
        if state.options.module == options.module && state.identity.as_ref() == Some(&identity) {
            // It was logged in already, so the PIN that was named now is unproven: the proven one stays.
            options.pin.clone_from(&state.options.pin);
        }
        drop(state);
        // From now on it must be this one.
        options.expected = Some(Expected { serial: identity.serial.clone(), model: identity.model.clone() });
        let pool = Arc::new(Pool::start(token).map_err(TokenError::Threads)?);
        // Its calls are watched from now on, too.
        self.state().busy.extend_from_slice(pool.busy());
        Ok(Candidate { options, key, identity, attributes, pool: Some(pool) })
    }

    /// Puts `candidate` in the place of the token that there was, which is closed. `None` where it was
    /// closed: then it is to be opened.
    pub fn replace(&self, candidate: Candidate) -> Option<Arc<Pool>> {
        let Candidate { mut options, key, identity, pool, .. } = candidate;
        let mut state = self.state();
        // Its PIN was not to stop that of the token before; now it is the one that counts.
        options.latch.clone_from(&state.options.latch);
        (state.options, state.key) = (options, key);
        let pool = pool?;
        state.busy = pool.busy().to_vec();
        state.identity = Some(identity);
        let before = state.pool.replace(pool.clone());
        // Its sessions are closed without the lock.
        drop(state);
        drop(before);
        Some(pool)
    }

    /// The token, if it is there.
    #[must_use]
    pub fn pool(&self) -> Option<Arc<Pool>> {
        self.state().pool.clone()
    }

    /// The same for data objects.
    ///
    /// # Errors
    /// [`ObjectError::Away`].
    pub fn objects(&self) -> Result<Arc<Pool>, ObjectError> {
        self.pool().ok_or(ObjectError::Away)
    }

    /// For how long the call of the library has lasted that has lasted longest, of those under way.
    /// PKCS#11 knows no time-outs, so this is all that tells of one that hangs.
    #[must_use]
    pub fn longest_call(&self) -> Option<Duration> {
        let state = self.state();
        state.busy.iter().filter_map(|busy| busy.elapsed()).chain(self.opening.elapsed()).max()
    }

    /// What the token said it is, when it was there last.
    #[must_use]
    pub fn identity(&self) -> Option<Identity> {
        self.state().identity.clone()
    }

    /// Gives up the token that there was and opens it again, as often as it takes, on a thread of its
    /// own. `failed` hears why an attempt failed, `back` once that it is there.
    ///
    /// # Errors
    /// When the operating system has no thread to give.
    pub fn recover(
        self: &Arc<Self>,
        mut failed: impl FnMut(&TokenError) + Send + 'static,
        back: impl FnOnce(Arc<Pool>) + Send + 'static,
    ) -> std::io::Result<()> {
        let keeper = self.clone();
        let recovering = move || {
            let mut wait = FIRST_WAIT;
            loop {
                keeper.give_up();
                if keeper.rest(wait) {
                    return;
                }
                match keeper.open() {
                    Ok(pool) => return back(pool),
                    Err(error) => failed(&error),
                }
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        };
        std::thread::Builder::new().name("token".into()).spawn(recovering).map(drop)
    }

    /// Closes all sessions and finalizes the library. Others may be in the middle of a call, which
    /// fails or ends; one that hangs is waited for here, until the process ends because of it.
    fn give_up(&self) {
        let Some(mut pool) = self.state().pool.take() else { return };
        loop {
            match Arc::try_unwrap(pool) {
                Ok(last) => return drop(last),
                Err(shared) => pool = shared,
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits so long, or until the keeper is closed; whether it is.
    fn rest(&self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        let mut state = self.state();
        while !state.closing {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Ends attempts to bring it back.
    pub fn close(&self) {
        self.state().closing = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
