//! A PKCS#11 module for tests: it passes every call on to the module named by the environment
//! variable `PKCS11_SHIM_MODULE`, save where the file named by `PKCS11_SHIM_CONTROL` says otherwise.
//!
//! The file is read again whenever it changes, so replace it by renaming another over it. Its
//! lines, in any order; `#` begins a comment:
//!
//! ```text
//! delay C_Sign 71ms serial           it takes so long; `serial`: one at a time over all sessions
//! return C_Sign CKR_DEVICE_ERROR     it fails, by name or number, and the module hears nothing
//! return C_Login 0xa0 count 1        the first time only, counted from when the line was read
//! hang C_Sign                        it does not come back while the line is there
//! signature short                    what C_Sign gives: short, garbage or other-key; also with count
//! count FILE                         write there `calls N busy_us N`, C_Sign's since the start
//! note C_Login FILE                  one line more there for each call, of whatever process
//! ```
//!
//! Any function can be named. Of `C_Sign` only the calls that sign are meant, not those that ask
//! for a length; one that is to fail is passed on all the same and its signature thrown away, since
//! an operation is over after an error. A line that makes no sense ends the process: a test that injects no fault would
//! show nothing.

#![allow(unsafe_code, reason = "a PKCS#11 module is C functions that are given pointers")]
#![allow(non_snake_case, reason = "the functions are called what PKCS#11 calls them")]
#![allow(clippy::too_many_arguments, reason = "as many as PKCS#11 gives them")]

use std::collections::HashMap;
use std::ffi::c_void;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cryptoki_sys::*;
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::ecdsa::{Signature, SigningKey};

/// The one symbol that callers look up.
///
/// # Safety
/// As PKCS#11 has it: `list` is null or can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    // SAFETY: the caller says so. Nobody writes through the pointer that it is given.
    unsafe { *list = (&raw const shim().functions).cast_mut() };
    CKR_OK
}

/// Passes a call on with the arguments that it came with, and lists all functions.
macro_rules! forward {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {
        $(unsafe extern "C" fn $name($($argument: $kind),*) -> CK_RV {
            around(stringify!($name), || match shim().module.$name {
                // SAFETY: the same call that our caller made, under the same promises.
                Some(function) => unsafe { function($($argument),*) },
                None => CKR_FUNCTION_NOT_SUPPORTED,
            })
        })*

        /// Every function that a line can name.
        const FUNCTIONS: &[&str] = &["C_Sign", $(stringify!($name)),*];

        fn functions(version: CK_VERSION) -> CK_FUNCTION_LIST {
            CK_FUNCTION_LIST {
                version,
                C_GetFunctionList: Some(C_GetFunctionList),
                C_Sign: Some(C_Sign),
                $($name: Some($name),)*
            }
        }
    };
}

forward! {
    C_Initialize(a: *mut c_void);
    C_Finalize(a: *mut c_void);
    C_GetInfo(a: *mut CK_INFO);
    C_GetSlotList(a: CK_BBOOL, b: *mut CK_SLOT_ID, c: *mut CK_ULONG);
    C_GetSlotInfo(a: CK_SLOT_ID, b: *mut CK_SLOT_INFO);
    C_GetTokenInfo(a: CK_SLOT_ID, b: *mut CK_TOKEN_INFO);
    C_GetMechanismList(a: CK_SLOT_ID, b: *mut CK_MECHANISM_TYPE, c: *mut CK_ULONG);
    C_GetMechanismInfo(a: CK_SLOT_ID, b: CK_MECHANISM_TYPE, c: *mut CK_MECHANISM_INFO);
    C_InitToken(a: CK_SLOT_ID, b: *mut CK_UTF8CHAR, c: CK_ULONG, d: *mut CK_UTF8CHAR);
    C_InitPIN(a: CK_SESSION_HANDLE, b: *mut CK_UTF8CHAR, c: CK_ULONG);
    C_SetPIN(a: CK_SESSION_HANDLE, b: *mut CK_UTF8CHAR, c: CK_ULONG, d: *mut CK_UTF8CHAR, e: CK_ULONG);
    C_OpenSession(a: CK_SLOT_ID, b: CK_FLAGS, c: *mut c_void, d: CK_NOTIFY, e: *mut CK_SESSION_HANDLE);
    C_CloseSession(a: CK_SESSION_HANDLE);
    C_CloseAllSessions(a: CK_SLOT_ID);
    C_GetSessionInfo(a: CK_SESSION_HANDLE, b: *mut CK_SESSION_INFO);
    C_GetOperationState(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: *mut CK_ULONG);
    C_SetOperationState(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: CK_OBJECT_HANDLE, e: CK_OBJECT_HANDLE);
    C_Login(a: CK_SESSION_HANDLE, b: CK_USER_TYPE, c: *mut CK_UTF8CHAR, d: CK_ULONG);
    C_Logout(a: CK_SESSION_HANDLE);
    C_CreateObject(a: CK_SESSION_HANDLE, b: *mut CK_ATTRIBUTE, c: CK_ULONG, d: *mut CK_OBJECT_HANDLE);
    C_CopyObject(a: CK_SESSION_HANDLE, b: CK_OBJECT_HANDLE, c: *mut CK_ATTRIBUTE, d: CK_ULONG, e: *mut CK_OBJECT_HANDLE);
    C_DestroyObject(a: CK_SESSION_HANDLE, b: CK_OBJECT_HANDLE);
    C_GetObjectSize(a: CK_SESSION_HANDLE, b: CK_OBJECT_HANDLE, c: *mut CK_ULONG);
    C_GetAttributeValue(a: CK_SESSION_HANDLE, b: CK_OBJECT_HANDLE, c: *mut CK_ATTRIBUTE, d: CK_ULONG);
    C_SetAttributeValue(a: CK_SESSION_HANDLE, b: CK_OBJECT_HANDLE, c: *mut CK_ATTRIBUTE, d: CK_ULONG);
    C_FindObjectsInit(a: CK_SESSION_HANDLE, b: *mut CK_ATTRIBUTE, c: CK_ULONG);
    C_FindObjects(a: CK_SESSION_HANDLE, b: *mut CK_OBJECT_HANDLE, c: CK_ULONG, d: *mut CK_ULONG);
    C_FindObjectsFinal(a: CK_SESSION_HANDLE);
    C_EncryptInit(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM, c: CK_OBJECT_HANDLE);
    C_Encrypt(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_EncryptUpdate(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_EncryptFinal(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: *mut CK_ULONG);
    C_DecryptInit(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM, c: CK_OBJECT_HANDLE);
    C_Decrypt(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_DecryptUpdate(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_DecryptFinal(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: *mut CK_ULONG);
    C_DigestInit(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM);
    C_Digest(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_DigestUpdate(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG);
    C_DigestKey(a: CK_SESSION_HANDLE, b: CK_OBJECT_HANDLE);
    C_DigestFinal(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: *mut CK_ULONG);
    C_SignInit(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM, c: CK_OBJECT_HANDLE);
    C_SignUpdate(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG);
    C_SignFinal(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: *mut CK_ULONG);
    C_SignRecoverInit(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM, c: CK_OBJECT_HANDLE);
    C_SignRecover(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_VerifyInit(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM, c: CK_OBJECT_HANDLE);
    C_Verify(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: CK_ULONG);
    C_VerifyUpdate(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG);
    C_VerifyFinal(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG);
    C_VerifyRecoverInit(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM, c: CK_OBJECT_HANDLE);
    C_VerifyRecover(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_DigestEncryptUpdate(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_DecryptDigestUpdate(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_SignEncryptUpdate(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_DecryptVerifyUpdate(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_GenerateKey(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM, c: *mut CK_ATTRIBUTE, d: CK_ULONG, e: *mut CK_OBJECT_HANDLE);
    C_GenerateKeyPair(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM, c: *mut CK_ATTRIBUTE, d: CK_ULONG, e: *mut CK_ATTRIBUTE, f: CK_ULONG, g: *mut CK_OBJECT_HANDLE, h: *mut CK_OBJECT_HANDLE);
    C_WrapKey(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM, c: CK_OBJECT_HANDLE, d: CK_OBJECT_HANDLE, e: *mut CK_BYTE, f: *mut CK_ULONG);
    C_UnwrapKey(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM, c: CK_OBJECT_HANDLE, d: *mut CK_BYTE, e: CK_ULONG, f: *mut CK_ATTRIBUTE, g: CK_ULONG, h: *mut CK_OBJECT_HANDLE);
    C_DeriveKey(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM, c: CK_OBJECT_HANDLE, d: *mut CK_ATTRIBUTE, e: CK_ULONG, f: *mut CK_OBJECT_HANDLE);
    C_SeedRandom(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG);
    C_GenerateRandom(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG);
    C_GetFunctionStatus(a: CK_SESSION_HANDLE);
    C_CancelFunction(a: CK_SESSION_HANDLE);
    C_WaitForSlotEvent(a: CK_FLAGS, b: *mut CK_SLOT_ID, c: *mut c_void);
}

unsafe extern "C" fn C_Sign(
    session: CK_SESSION_HANDLE,
    data: *mut CK_BYTE,
    length: CK_ULONG,
    signature: *mut CK_BYTE,
    size: *mut CK_ULONG,
) -> CK_RV {
    let sign = || match shim().module.C_Sign {
        // SAFETY: the same call that our caller made, under the same promises.
        Some(function) => unsafe { function(session, data, length, signature, size) },
        None => CKR_FUNCTION_NOT_SUPPORTED,
    };
    if signature.is_null() {
        return sign();
    }
    around("C_Sign", || {
        let result = sign();
        let control = shim().control();
        if let Some((code, left)) = control.faults.get("C_Sign").and_then(|fault| fault.returned.as_ref())
            && take(left)
        {
            return *code;
        }
        if let (CKR_OK, Some((forgery, left))) = (result, &control.forgery)
            && take(left)
        {
            // SAFETY: a call that succeeded has read the data and written the signature, whose
            // size it gave.
            let (data, signature, size) = unsafe {
                let signature = std::slice::from_raw_parts_mut(signature, *size as usize);
                (std::slice::from_raw_parts(data, length as usize), signature, &mut *size)
            };
            forgery.apply(data, signature, size);
        }
        result
    })
}

/// Runs `call` with what the control file says of `function`.
fn around(function: &str, call: impl FnOnce() -> CK_RV) -> CK_RV {
    let shim = shim();
    while shim.control().faults.get(function).is_some_and(|fault| fault.hangs) {
        sleep(Duration::from_millis(10));
    }
    let control = shim.control();
    if let Some(mut file) = control.faults.get(function).and_then(|fault| fault.notes.as_ref()) {
        file.write_all(b"called\n").unwrap_or_else(|error| die(&error.to_string()));
    }
    let delay = control.faults.get(function).and_then(|fault| fault.delay);
    let turn = delay.filter(|delay| delay.serial).map(|_| lock(&shim.turn));
    let begun = Instant::now();
    // C_Sign does this itself.
    let returned = control.faults.get(function).filter(|_| function != "C_Sign");
    let returned = returned.and_then(|fault| fault.returned.as_ref());
    let result = match returned {
        Some((code, left)) if take(left) => *code,
        _ => call(),
    };
    if let Some(delay) = delay {
        // All of it is so long, whatever the module needed.
        sleep(delay.duration.saturating_sub(begun.elapsed()));
    }
    let busy = begun.elapsed();
    drop(turn);
    if function == "C_Sign" {
        shim.count(&control, busy);
    }
    result
}

struct Shim {
    module: &'static CK_FUNCTION_LIST,
    functions: CK_FUNCTION_LIST,
    path: Option<PathBuf>,
    /// As it was read last, and what told that version from others.
    control: Mutex<(Option<Stamp>, Arc<Control>)>,
    /// Held by the one that a slow token works for.
    turn: Mutex<()>,
    /// Calls of C_Sign and microseconds in them.
    signed: Mutex<(u64, u64)>,
}

/// When the file was changed, its inode and its size.
type Stamp = (i64, i64, u64, u64);

fn shim() -> &'static Shim {
    static SHIM: OnceLock<Shim> = OnceLock::new();
    SHIM.get_or_init(|| {
        let module = load(
            &std::env::var_os("PKCS11_SHIM_MODULE").unwrap_or_else(|| die("PKCS11_SHIM_MODULE is not set")),
        );
        Shim {
            module,
            functions: functions(module.version),
            path: std::env::var_os("PKCS11_SHIM_CONTROL").map(PathBuf::from),
            control: Mutex::default(),
            turn: Mutex::default(),
            signed: Mutex::default(),
        }
    })
}

fn load(module: &std::ffi::OsStr) -> &'static CK_FUNCTION_LIST {
    // SAFETY: what a module does when it is loaded is what the test wants done.
    let library = unsafe { libloading::Library::new(module) };
    let library = Box::leak(Box::new(library.unwrap_or_else(|error| die(&error.to_string()))));
    let mut list = std::ptr::null_mut();
    // SAFETY: PKCS#11 gives the symbol this type. The list lives as long as the library, which is
    // never unloaded.
    unsafe {
        let get: libloading::Symbol<'_, unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV> =
            library.get(b"C_GetFunctionList").unwrap_or_else(|error| die(&error.to_string()));
        match get(&raw mut list) {
            CKR_OK => list.as_ref().unwrap_or_else(|| die("the module has no functions")),
            code => die(&format!("C_GetFunctionList: {code:#x}")),
        }
    }
}

impl Shim {
    /// What the control file says now.
    fn control(&self) -> Arc<Control> {
        let Some(path) = &self.path else { return Arc::default() };
        let stamp = std::fs::metadata(path).ok().map(|m| (m.mtime(), m.mtime_nsec(), m.ino(), m.size()));
        let mut known = lock(&self.control);
        if known.0 != stamp {
            let text = stamp.map(|_| std::fs::read_to_string(path).unwrap_or_default()).unwrap_or_default();
            *known = (stamp, Arc::new(Control::parse(&text).unwrap_or_else(|line| die(&line))));
        }
        Arc::clone(&known.1)
    }

    fn count(&self, control: &Control, busy: Duration) {
        let mut signed = lock(&self.signed);
        signed.0 += 1;
        signed.1 += busy.as_micros() as u64;
        if let Some(file) = &control.count {
            // Always as long, so that a reader sees the old or the new.
            let text = format!("calls {:012} busy_us {:015}\n", signed.0, signed.1);
            file.write_all_at(text.as_bytes(), 0).unwrap_or_else(|error| die(&error.to_string()));
        }
    }
}

#[derive(Default)]
struct Control {
    faults: HashMap<String, Faults>,
    forgery: Option<(Forgery, Times)>,
    count: Option<File>,
}

/// What is to become of the calls of one function.
#[derive(Default)]
struct Faults {
    delay: Option<Delay>,
    returned: Option<(CK_RV, Times)>,
    hangs: bool,
    notes: Option<File>,
}

#[derive(Clone, Copy)]
struct Delay {
    duration: Duration,
    serial: bool,
}

/// How often yet; `None` is always.
type Times = Option<AtomicU64>;

/// Whether this time is one of them.
fn take(times: &Times) -> bool {
    let less = |left: u64| left.checked_sub(1);
    times.as_ref().is_none_or(|left| left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok())
}

impl Control {
    /// The line that makes no sense is the error.
    fn parse(text: &str) -> Result<Self, String> {
        let mut control = Control::default();
        for line in text.lines() {
            control.add(line.split('#').next().unwrap_or_default()).ok_or(line)?;
        }
        Ok(control)
    }

    fn add(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [] => {}
            ["delay", function, duration, ref serial @ ..] => {
                let duration = parse_duration(duration)?;
                let serial = match serial {
                    [] => false,
                    ["serial"] => true,
                    _ => return None,
                };
                self.of(function)?.delay = Some(Delay { duration, serial });
            }
            ["return", function, code, ref times @ ..] => {
                self.of(function)?.returned = Some((parse_code(code)?, parse_times(times)?));
            }
            ["hang", function] => self.of(function)?.hangs = true,
            ["note", function, path] => {
                self.of(function)?.notes = Some(File::options().create(true).append(true).open(path).ok()?);
            }
            ["signature", forgery, ref times @ ..] => {
                let forgery = match forgery {
                    "short" => Forgery::Short,
                    "garbage" => Forgery::Garbage,
                    "other-key" => Forgery::OtherKey,
                    _ => return None,
                };
                self.forgery = Some((forgery, parse_times(times)?));
            }
            ["count", path] => {
                self.count = Some(File::options().create(true).truncate(false).write(true).open(path).ok()?);
            }
            _ => return None,
        }
        Some(())
    }

    fn of(&mut self, function: &str) -> Option<&mut Faults> {
        FUNCTIONS.contains(&function).then(|| self.faults.entry(function.to_owned()).or_default())
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    text.strip_suffix("ms")?.parse().ok().map(Duration::from_millis)
}

fn parse_times(words: &[&str]) -> Option<Times> {
    match words {
        [] => Some(None),
        ["count", times] => Some(Some(AtomicU64::new(times.parse().ok()?))),
        _ => None,
    }
}

fn parse_code(text: &str) -> Option<CK_RV> {
    if let Some(hex) = text.strip_prefix("0x") {
        return CK_RV::from_str_radix(hex, 16).ok();
    }
    let named = CODES.iter().find(|(name, _)| *name == text).map(|(_, code)| *code);
    named.or_else(|| text.parse().ok())
}

/// What a token that lies gives in place of a signature.
enum Forgery {
    /// One byte less.
    Short,
    /// Of the right form.
    Garbage,
    /// A good signature of what was asked for, by a key that nobody knows.
    OtherKey,
}

impl Forgery {
    fn apply(&self, data: &[u8], signature: &mut [u8], size: &mut CK_ULONG) {
        match self {
            Forgery::Short => *size -= 1,
            Forgery::Garbage => signature.fill(0x5a),
            Forgery::OtherKey => {
                let key = SigningKey::from_slice(&[0x5a; 32]).unwrap_or_else(|_| die("in range"));
                let other: Result<Signature, _> = key.sign_prehash(data);
                signature.copy_from_slice(&other.unwrap_or_else(|_| die("a short digest")).to_bytes());
            }
        }
    }
}

fn die(reason: &str) -> ! {
    eprintln!("pkcs11-shim: {reason}");
    std::process::abort()
}

/// Locks; what these mutexes guard is whole after any panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

macro_rules! codes {
    ($($name:ident)*) => {
        /// Every code that PKCS#11 has a name for.
        const CODES: &[(&str, CK_RV)] = &[$((stringify!($name), $name)),*];
    };
}

codes! {
    CKR_OK CKR_CANCEL CKR_HOST_MEMORY CKR_SLOT_ID_INVALID CKR_GENERAL_ERROR CKR_FUNCTION_FAILED
    CKR_ARGUMENTS_BAD CKR_NO_EVENT CKR_NEED_TO_CREATE_THREADS CKR_CANT_LOCK
    CKR_ATTRIBUTE_READ_ONLY CKR_ATTRIBUTE_SENSITIVE CKR_ATTRIBUTE_TYPE_INVALID
    CKR_ATTRIBUTE_VALUE_INVALID CKR_ACTION_PROHIBITED CKR_DATA_INVALID CKR_DATA_LEN_RANGE
    CKR_DEVICE_ERROR CKR_DEVICE_MEMORY CKR_DEVICE_REMOVED CKR_ENCRYPTED_DATA_INVALID
    CKR_ENCRYPTED_DATA_LEN_RANGE CKR_AEAD_DECRYPT_FAILED CKR_FUNCTION_CANCELED
    CKR_FUNCTION_NOT_PARALLEL CKR_FUNCTION_NOT_SUPPORTED CKR_KEY_HANDLE_INVALID
    CKR_KEY_SIZE_RANGE CKR_KEY_TYPE_INCONSISTENT CKR_KEY_NOT_NEEDED CKR_KEY_CHANGED
    CKR_KEY_NEEDED CKR_KEY_INDIGESTIBLE CKR_KEY_FUNCTION_NOT_PERMITTED CKR_KEY_NOT_WRAPPABLE
    CKR_KEY_UNEXTRACTABLE CKR_MECHANISM_INVALID CKR_MECHANISM_PARAM_INVALID
    CKR_OBJECT_HANDLE_INVALID CKR_OPERATION_ACTIVE CKR_OPERATION_NOT_INITIALIZED
    CKR_PIN_INCORRECT CKR_PIN_INVALID CKR_PIN_LEN_RANGE CKR_PIN_EXPIRED CKR_PIN_LOCKED
    CKR_SESSION_CLOSED CKR_SESSION_COUNT CKR_SESSION_HANDLE_INVALID
    CKR_SESSION_PARALLEL_NOT_SUPPORTED CKR_SESSION_READ_ONLY CKR_SESSION_EXISTS
    CKR_SESSION_READ_ONLY_EXISTS CKR_SESSION_READ_WRITE_SO_EXISTS CKR_SIGNATURE_INVALID
    CKR_SIGNATURE_LEN_RANGE CKR_TEMPLATE_INCOMPLETE CKR_TEMPLATE_INCONSISTENT
    CKR_TOKEN_NOT_PRESENT CKR_TOKEN_NOT_RECOGNIZED CKR_TOKEN_WRITE_PROTECTED
    CKR_UNWRAPPING_KEY_HANDLE_INVALID CKR_UNWRAPPING_KEY_SIZE_RANGE
    CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT CKR_USER_ALREADY_LOGGED_IN CKR_USER_NOT_LOGGED_IN
    CKR_USER_PIN_NOT_INITIALIZED CKR_USER_TYPE_INVALID CKR_USER_ANOTHER_ALREADY_LOGGED_IN
    CKR_USER_TOO_MANY_TYPES CKR_WRAPPED_KEY_INVALID CKR_WRAPPED_KEY_LEN_RANGE
    CKR_WRAPPING_KEY_HANDLE_INVALID CKR_WRAPPING_KEY_SIZE_RANGE
    CKR_WRAPPING_KEY_TYPE_INCONSISTENT CKR_RANDOM_SEED_NOT_SUPPORTED CKR_RANDOM_NO_RNG
    CKR_DOMAIN_PARAMS_INVALID CKR_CURVE_NOT_SUPPORTED CKR_BUFFER_TOO_SMALL
    CKR_SAVED_STATE_INVALID CKR_INFORMATION_SENSITIVE CKR_STATE_UNSAVEABLE
    CKR_CRYPTOKI_NOT_INITIALIZED CKR_CRYPTOKI_ALREADY_INITIALIZED CKR_MUTEX_BAD
    CKR_MUTEX_NOT_LOCKED CKR_NEW_PIN_MODE CKR_NEXT_OTP CKR_EXCEEDED_MAX_ITERATIONS
    CKR_FIPS_SELF_TEST_FAILED CKR_LIBRARY_LOAD_FAILED CKR_PIN_TOO_WEAK CKR_PUBLIC_KEY_INVALID
    CKR_FUNCTION_REJECTED CKR_TOKEN_RESOURCE_EXCEEDED CKR_OPERATION_CANCEL_FAILED
    CKR_KEY_EXHAUSTED CKR_PENDING CKR_SESSION_ASYNC_NOT_SUPPORTED CKR_SEED_RANDOM_REQUIRED
    CKR_OPERATION_NOT_VALIDATED CKR_TOKEN_NOT_INITIALIZED CKR_PARAMETER_SET_NOT_SUPPORTED
    CKR_VENDOR_DEFINED
}
