//! The signing threads: each owns one session, all work on one call until everything in it is begun.
//!
//! No lock is held while the token signs. A thread takes the next message of the oldest call by
//! counting up an index, one message at a time, so that a token of six signatures a second is
//! shared as evenly as one of twenty thousand.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::data::{self, ANSWER_WITHIN, ObjectError};
use super::session::{Connection, Library, Seat};
use super::{SignError, Token};
use crate::ledger::key::{Signable, Signature};

/// Gets the result of a call to [`Pool::sign`], on a signing thread (on the caller's when there was
/// nothing to sign): it should hand it over and return.
pub type Done = Box<dyn FnOnce(Result<Vec<Signature>, SignError>) + Send>;

/// The signing threads of one token. Dropping it lets them finish what is queued, then closes
/// the sessions and finalizes the library.
pub struct Pool {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
    /// Of each thread, since when it is in a call of the library.
    busy: Vec<Arc<Busy>>,
    library: Weak<Library>,
}

/// Since when a thread is in a call of the library.
pub(super) struct Busy {
    began: Instant,
    /// Milliseconds after `began`, 0 while it is in none.
    since: AtomicU64,
}

impl Busy {
    pub(super) fn new() -> Self {
        Busy { began: Instant::now(), since: AtomicU64::new(0) }
    }

    pub(super) fn during<T>(&self, call: impl FnOnce() -> T) -> T {
        let now = self.began.elapsed().as_millis() as u64;
        self.since.store(now.max(1), Ordering::Relaxed);
        let result = call();
        self.since.store(0, Ordering::Relaxed);
        result
    }

    pub(super) fn elapsed(&self) -> Option<Duration> {
        let since = self.since.load(Ordering::Relaxed);
        (since > 0).then(|| self.began.elapsed().saturating_sub(Duration::from_millis(since)))
    }
}

/// What [`Pool::bench`] measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BenchFigures {
    /// Signatures a second, over all sessions.
    pub per_second: f64,
    /// How long half of the signatures took at most, in microseconds.
    pub p50_us: f64,
}

impl Pool {
    /// Starts one thread for each session that `token` has open.
    ///
    /// # Errors
    /// When a thread cannot be started. The token is closed then.
    pub fn start(token: Token) -> io::Result<Self> {
        let mut pool = Pool {
            queue: Arc::default(),
            threads: Vec::new(),
            busy: Vec::new(),
            library: Arc::downgrade(token.connection.library()),
        };
        for (n, mut seat) in token.seats.into_iter().enumerate() {
            let queue = Arc::clone(&pool.queue);
            let busy = Arc::new(Busy::new());
            pool.busy.push(busy.clone());
            let work = move || {
                while let Some(task) = queue.next() {
                    match &*task {
                        Task::Call(call) => call.help(&mut seat, &busy, &queue.signed),
                        Task::Bench(bench) => bench.help(&mut seat, &queue.signed),
                        Task::Errand(errand) => busy.during(|| errand.run(&seat)),
                    }
                }
            };
            pool.threads.push(thread::Builder::new().name(format!("sign-{n}")).spawn(work)?);
        }
        Ok(pool)
    }

    /// How many sessions sign.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.threads.len()
    }

    /// The library that the token is in.
    pub(super) fn library(&self) -> Option<Arc<Library>> {
        self.library.upgrade()
    }

    /// Since when each thread is in a call of the library.
    pub(super) fn busy(&self) -> &[Arc<Busy>] {
        &self.busy
    }

    /// How many signatures the token has made for [`Pool::sign`] and [`Pool::bench`]: while this grows,
    /// it does not hang.
    #[must_use]
    pub fn signed(&self) -> u64 {
        self.queue.signed.load(Ordering::Relaxed)
    }

    /// Signs all of `messages` on all sessions and then calls `done`, once, with the signatures in
    /// the order of the messages. Every signature was verified. Does not wait.
    ///
    /// The messages of one call are begun before those of later calls. After an error none of the
    /// call's messages counts as signed, and when `done` is called no thread works on them any more.
    pub fn sign(&self, messages: Vec<Signable>, done: Done) {
        if messages.is_empty() {
            return done(Ok(Vec::new()));
        }
        self.queue.push(Task::Call(Call {
            signatures: messages.iter().map(|_| OnceLock::new()).collect(),
            next: AtomicUsize::new(0),
            unsettled: AtomicUsize::new(messages.len()),
            error: Mutex::new(None),
            done: Mutex::new(Some(done)),
            messages,
        }));
    }

    /// Measures how fast the token signs on `sessions` sessions at once, for `duration` or one
    /// signature each, whatever is longer. Blocks; what was queued before is signed first.
    ///
    /// It signs `attestd-bench-v1` texts, which are no entries and are kept nowhere.
    ///
    /// # Errors
    /// [`SignError::Sessions`] when the pool has not that many, or the first failure of the token.
    pub fn bench(
        &self,
        sessions: usize,
        duration: Duration,
        origin: &str,
    ) -> Result<BenchFigures, SignError> {
        let available = self.sessions();
        if !(1..=available).contains(&sessions) {
            return Err(SignError::Sessions { asked: sessions, available });
        }
        let (report, reports) = mpsc::channel();
        self.queue.push(Task::Bench(Bench {
            sessions,
            joined: AtomicUsize::new(0),
            together: Barrier::new(sessions),
            duration,
            origin: origin.to_owned(),
            nonce: uuid::Uuid::new_v4().simple().to_string(),
            report,
        }));

        let mut per_second = 0.0;
        let mut nanoseconds = Vec::new();
        for _ in 0..sessions {
            let run = reports.recv().map_err(|_| SignError::Panicked)??;
            per_second += run.nanoseconds.len() as f64 / run.elapsed.as_secs_f64();
            nanoseconds.extend(run.nanoseconds);
        }
        let middle = nanoseconds.len() / 2;
        let (_, median, _) = nanoseconds.select_nth_unstable(middle);
        Ok(BenchFigures { per_second, p50_us: *median as f64 / 1e3 })
    }

    /// The values of attestd's data objects with this label. Blocks, but not behind signatures that
    /// wait.
    ///
    /// # Errors
    /// When the token can't be read, or does not answer.
    pub fn read_objects(&self, label: &str) -> Result<Vec<Vec<u8>>, ObjectError> {
        let label = label.to_owned();
        self.errand(move |connection| data::read(connection, &label))
    }

    /// Makes `value` the one data object with this label, `None` for none. Blocks as
    /// [`Pool::read_objects`] does.
    ///
    /// # Errors
    /// When the token keeps no data objects, fails, or does not answer; the old one is there then, the
    /// new one may be too.
    pub fn replace_object(&self, label: &str, value: Option<&[u8]>) -> Result<(), ObjectError> {
        let (label, value) = (label.to_owned(), value.map(<[u8]>::to_vec));
        self.errand(move |connection| data::replace(connection, &label, value.as_deref()))
    }

    fn errand<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Connection) -> Result<T, ObjectError> + Send + 'static,
    ) -> Result<T, ObjectError> {
        let (report, reports) = mpsc::channel();
        let run = move |connection: &Connection| {
            // Nobody listens any more after `ANSWER_WITHIN`.
            let _ = report.send(run(connection));
        };
        self.queue.push_first(Task::Errand(Errand(Mutex::new(Some(Box::new(run))))));
        reports.recv_timeout(ANSWER_WITHIN).unwrap_or(Err(ObjectError::NoAnswer))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.close();
        for thread in self.threads.drain(..) {
            // The last owner may be a `done`, and a thread cannot wait for itself.
            if thread.thread().id() != thread::current().id() {
                // A thread that panicked has nothing left to say.
                let _ = thread.join();
            }
        }
    }
}

enum Task {
    Call(Call),
    Bench(Bench),
    Errand(Errand),
}

impl Task {
    /// Whether a thread that is free has something to do here.
    fn has_room(&self) -> bool {
        match self {
            Task::Call(call) => call.next.load(Ordering::Relaxed) < call.messages.len(),
            Task::Bench(bench) => bench.joined.load(Ordering::Relaxed) < bench.sessions,
            Task::Errand(errand) => lock(&errand.0).is_some(),
        }
    }
}

#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
    signed: AtomicU64,
}

#[derive(Default)]
struct QueueState {
    tasks: VecDeque<Arc<Task>>,
    closed: bool,
}

impl Queue {
    fn push(&self, task: Task) {
        let one_is_enough = matches!(&task, Task::Call(call) if call.messages.len() == 1);
        lock(&self.state).tasks.push_back(Arc::new(task));
        if one_is_enough {
            self.changed.notify_one();
        } else {
            self.changed.notify_all();
        }
    }

    /// For what is short and must not wait for thousands of signatures.
    fn push_first(&self, task: Task) {
        lock(&self.state).tasks.push_front(Arc::new(task));
        self.changed.notify_one();
    }

    fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }

    /// Waits for the oldest task that has something left to begin. `None` when the queue is
    /// closed and everything in it is begun.
    fn next(&self) -> Option<Arc<Task>> {
        let mut state = lock(&self.state);
        loop {
            while let Some(oldest) = state.tasks.front() {
                if oldest.has_room() {
                    return Some(Arc::clone(oldest));
                }
                state.tasks.pop_front();
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// One call to [`Pool::sign`].
struct Call {
    messages: Vec<Signable>,
    signatures: Box<[OnceLock<Signature>]>,
    /// The first message that no thread has taken; beyond the end when all are.
    next: AtomicUsize,
    /// How many messages are neither signed nor given up. Who brings it to zero calls `done`.
    unsettled: AtomicUsize,
    error: Mutex<Option<SignError>>,
    done: Mutex<Option<Done>>,
}

impl Call {
    /// Signs messages until all are taken.
    fn help(&self, seat: &mut Seat, busy: &Busy, count: &AtomicU64) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(message) = self.messages.get(index) else { return };
            // A panic must cost neither the thread nor the answer.
            let signed = busy.during(|| catch_unwind(AssertUnwindSafe(|| seat.sign(message))));
            match signed.unwrap_or(Err(SignError::Panicked)) {
                Ok(signature) => {
                    count.fetch_add(1, Ordering::Relaxed);
                    self.signatures[index].get_or_init(|| signature);
                    self.settle(1);
                }
                Err(error) => {
                    lock(&self.error).get_or_insert(error);
                    // What nobody has taken is given up along with this one.
                    let taken = self.next.swap(self.messages.len(), Ordering::Relaxed);
                    self.settle(1 + self.messages.len().saturating_sub(taken));
                }
            }
        }
    }

    fn settle(&self, messages: usize) {
        // Acquire and release: who comes last sees what all the others have stored.
        if self.unsettled.fetch_sub(messages, Ordering::AcqRel) != messages {
            return;
        }
        let result = match lock(&self.error).take() {
            Some(error) => Err(error),
            None => Ok(self.signatures.iter().filter_map(OnceLock::get).copied().collect()),
        };
        let done = lock(&self.done).take();
        if let Some(done) = done {
            // A panic in there is the caller's, and was reported by the panic hook.
            let _ = catch_unwind(AssertUnwindSafe(|| done(result)));
        }
    }
}

/// One call to [`Pool::bench`].
struct Bench {
    sessions: usize,
    joined: AtomicUsize,
    /// All begin at once, when the last of them is free.
    together: Barrier,
    duration: Duration,
    origin: String,
    nonce: String,
    report: mpsc::Sender<Result<Run, SignError>>,
}

/// What one session did in a measurement.
struct Run {
    elapsed: Duration,
    /// For each signature, how long it took.
    nanoseconds: Vec<u64>,
}

impl Bench {
    fn help(&self, seat: &mut Seat, count: &AtomicU64) {
        let number = self.joined.fetch_add(1, Ordering::Relaxed);
        if number >= self.sessions {
            return;
        }
        self.together.wait();
        let run = catch_unwind(AssertUnwindSafe(|| self.measure(number, seat, count)));
        // Nobody listens any more when another session has failed.
        let _ = self.report.send(run.unwrap_or(Err(SignError::Panicked)));
    }

    fn measure(&self, number: usize, seat: &mut Seat, count: &AtomicU64) -> Result<Run, SignError> {
        let mut nanoseconds = Vec::new();
        let start = Instant::now();
        loop {
            let rest = format!("{}\n{number}\n{}", self.nonce, nanoseconds.len());
            let digest = Signable::purpose("bench", &self.origin, &rest).digest();
            let begun = Instant::now();
            seat.sign_digest(&digest)?;
            count.fetch_add(1, Ordering::Relaxed);
            nanoseconds.push(begun.elapsed().as_nanos() as u64);
            let elapsed = start.elapsed();
            if elapsed >= self.duration {
                return Ok(Run { elapsed, nanoseconds });
            }
        }
    }
}

/// Something else than signing that one thread does, in a session of its own.
struct Errand(Mutex<Option<OnConnection>>);

type OnConnection = Box<dyn FnOnce(&Connection) + Send>;

impl Errand {
    fn run(&self, seat: &Seat) {
        let run = lock(&self.0).take();
        if let Some(run) = run {
            // After a panic, which the panic hook reports, the caller hears that nobody reports.
            let _ = catch_unwind(AssertUnwindSafe(|| run(seat.connection())));
        }
    }
}

/// Locks; what these mutexes guard is whole after any panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
