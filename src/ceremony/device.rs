//! Which tokens a key may be made on, by what they say of themselves.
//!
//! A module's word on its token is all that PKCS#11 gives, so this guards against mistakes and old
//! firmware, not against a module that lies.

use serde::{Deserialize, Serialize};

/// What a token says of itself (`CK_TOKEN_INFO`), without padding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// `CKF_…` that are set, in lower case and without the prefix, sorted.
    pub flags: Vec<String>,
    /// `MAJOR.MINOR` as two bytes; what they mean is the manufacturer's.
    pub firmware: String,
    /// The same of the hardware.
    pub hardware: String,
    /// The label it was given.
    pub label: String,
    /// The library through which it was seen, with its version.
    pub library: String,
    /// Who made it.
    pub manufacturer: String,
    /// Its model.
    pub model: String,
    /// Its serial number.
    pub serial: String,
}

/// Why no key is made on a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Firmware with a known hole through which keys leak.
    #[error(
        "the firmware of this {model} ({firmware}) is older than {needed}, and its ECDSA keys can be read out by who holds it (YSA-2024-03): it can't be updated, use another token"
    )]
    Firmware {
        /// What kind of token.
        model: &'static str,
        /// What it says.
        firmware: String,
        /// The first that is good.
        needed: &'static str,
    },
    /// A flag that says that it is not ready.
    #[error("the token says {0}: it is not in a state for a ceremony")]
    Flag(String),
    /// A wrong PIN might lock it.
    #[error(
        "the plan asks for the factory PIN to be tried, but this token locks after few wrong PINs, or nothing is known of it: leave `factory_pin` out, and see to it by the manufacturer's own tool"
    )]
    WouldLock,
    /// A wrong PIN was given before.
    #[error(
        "the token says {0}, so no wrong PIN is tried on it: log in to it once with the right one, then begin again"
    )]
    CounterLow(String),
}

/// Whether it is a program that plays a token. A key in it can be copied with its files, so a
/// ceremony on it is a rehearsal, whatever the plan says.
#[must_use]
pub fn is_software(manufacturer: &str, model: &str) -> bool {
    let begins = |text: &str, names: [&str; 3]| {
        let text = text.to_ascii_lowercase();
        names.iter().any(|name| text.starts_with(name))
    };
    begins(manufacturer, ["softhsm", "kryoptic", "mozilla"]) || begins(model, ["softhsm", "nss ", "sw "])
}

impl Device {
    /// [`is_software`].
    #[must_use]
    pub fn is_software(&self) -> bool {
        is_software(&self.manufacturer, &self.model)
    }

    /// Whether a wrong PIN is known to do no harm that the right one does not undo. Whatever is not
    /// known is taken to lock early, as most cards do, after three.
    #[must_use]
    pub fn bears_a_wrong_pin(&self) -> bool {
        self.is_software() || self.is("YubiHSM")
    }

    fn is(&self, model: &str) -> bool {
        self.manufacturer.starts_with("Yubico") && self.model.starts_with(model)
    }

    /// Refuses a token that no key should be made on, or on which the plan's test of the factory PIN
    /// could do harm. Gives what could not be told, in plain words.
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn check(&self, tests_factory_pin: bool) -> Result<Vec<String>, Unfit> {
        for flag in [
            "error_state",
            "so_pin_locked",
            "user_pin_final_try",
            "user_pin_locked",
            "user_pin_to_be_changed",
            "write_protected",
        ] {
            if self.has(flag) {
                return Err(Unfit::Flag(flag.into()));
            }
        }
        let mut notes = self.check_firmware()?;
        if tests_factory_pin {
            if !self.bears_a_wrong_pin() {
                return Err(Unfit::WouldLock);
            }
            if self.has("user_pin_count_low") {
                return Err(Unfit::CounterLow("user_pin_count_low".into()));
            }
        }
        if self.is_software() {
            notes.push("the token is a program: its key can be copied with its files".into());
        }
        Ok(notes)
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|set| set == flag)
    }

    fn check_firmware(&self) -> Result<Vec<String>, Unfit> {
        let version = self
            .firmware
            .split_once('.')
            .and_then(|(major, minor)| Some((major.parse::<u8>().ok()?, minor.parse::<u8>().ok()?)));
        let too_old = |model, needed| Err(Unfit::Firmware { model, firmware: self.firmware.clone(), needed });
        match version {
            Some(version) if self.is("YubiHSM") && yubihsm_is_old(version) => too_old("YubiHSM 2", "2.4"),
            Some(version) if self.is("YubiKey") && yubikey_is_old(version) => too_old("YubiKey", "5.7"),
            None if self.is("Yubi") => too_old("token of Yubico's", "5.7 (YubiKey) or 2.4 (YubiHSM 2)"),
            Some(_) if self.is("YubiHSM") || self.is("YubiKey") => Ok(Vec::new()),
            _ if self.is_software() => Ok(Vec::new()),
            _ => Ok(vec![
                "nothing is known here of this model's firmware: compare it with the manufacturer's advisories".into(),
            ]),
        }
    }
}

/// Yubico's module for the YubiHSM puts minor·100 + patch into one byte, where 2.4.0 is 144, and
/// other builds of it minor·10 + patch. What is old in either reading is refused.
fn yubihsm_is_old((major, minor): (u8, u8)) -> bool {
    let old_in_hundreds =
        (0..4u32).any(|old| (0..10).any(|patch| (old * 100 + patch) % 256 == u32::from(minor)));
    major < 2 || major == 2 && (minor < 40 || old_in_hundreds)
}

/// Yubico's module for the YubiKey puts minor·10 + patch into the byte: 5.7.1 is 71.
fn yubikey_is_old((major, minor): (u8, u8)) -> bool {
    major < 5 || major == 5 && minor < 70
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(manufacturer: &str, model: &str, firmware: &str, flags: &[&str]) -> Device {
        Device {
            flags: flags.iter().map(|flag| (*flag).into()).collect(),
            firmware: firmware.into(),
            hardware: "1.0".into(),
            label: "ledger".into(),
            library: "a library 1.0".into(),
            manufacturer: manufacturer.into(),
            model: model.into(),
            serial: "0001".into(),
        }
    }

    fn yubico(model: &str, firmware: &str) -> Result<Vec<String>, Unfit> {
        device("Yubico (www.yubico.com)", model, firmware, &["token_initialized"]).check(false)
    }

    #[test]
    fn firmware_that_leaks_keys_is_refused_and_the_next_is_not() {
        // 2.0.0, 2.1.2, 2.2.0, 2.3.1, 2.3.2 and 2.4.0, 2.4.1, 2.5.0 in one byte; then both in tens.
        for old in ["2.0", "2.102", "2.200", "2.45", "2.46", "1.244", "2.22", "2.31"] {
            assert!(matches!(yubico("YubiHSM", old), Err(Unfit::Firmware { .. })), "{old}");
        }
        for good in ["2.144", "2.145", "2.244", "2.40", "2.41", "3.0"] {
            assert_eq!(yubico("YubiHSM", good), Ok(vec![]), "{good}");
        }
        for old in ["5.69", "5.43", "5.0", "4.37", "5.7"] {
            assert!(matches!(yubico("YubiKey YK5", old), Err(Unfit::Firmware { .. })), "{old}");
        }
        for good in ["5.70", "5.71", "6.0"] {
            assert_eq!(yubico("YubiKey YK5", good), Ok(vec![]), "{good}");
        }
        assert!(yubico("YubiKey YK5", "").is_err(), "no version is no good version");
    }

    #[test]
    fn what_is_not_known_is_said() {
        let card = device("www.CardContact.de", "PKCS#15 emulated", "0.0", &[]);
        assert_eq!(card.check(false).map(|notes| notes.len()), Ok(1));
    }

    #[test]
    fn a_wrong_pin_is_tried_only_where_it_does_no_harm() {
        let hsm = |flags: &[&str]| device("Yubico (www.yubico.com)", "YubiHSM", "2.144", flags);
        assert_eq!(hsm(&[]).check(true), Ok(vec![]));
        assert_eq!(
            hsm(&["user_pin_count_low"]).check(true),
            Err(Unfit::CounterLow("user_pin_count_low".into()))
        );
        assert_eq!(hsm(&["user_pin_count_low"]).check(false), Ok(vec![]));
        for (manufacturer, model, firmware) in [
            ("Yubico (www.yubico.com)", "YubiKey YK5", "5.74"),
            ("www.CardContact.de", "PKCS#15 emulated", "3.5"),
            ("Nitrokey", "Nitrokey HSM", "4.1"),
            ("Infineon", "SLB9670", "7.85"),
            ("nobody", "nothing", "1.0"),
        ] {
            let device = device(manufacturer, model, firmware, &[]);
            assert_eq!(device.check(true), Err(Unfit::WouldLock), "{model}");
            assert!(device.check(false).is_ok(), "{model}");
        }
        assert!(device("SoftHSM project", "SoftHSM v2", "2.6", &[]).check(true).is_ok());
    }

    #[test]
    fn a_token_that_is_not_ready_is_refused() {
        for flag in [
            "user_pin_final_try",
            "user_pin_locked",
            "user_pin_to_be_changed",
            "error_state",
            "write_protected",
        ] {
            let device = device("SoftHSM project", "SoftHSM v2", "2.6", &["rng", flag]);
            assert_eq!(device.check(false), Err(Unfit::Flag(flag.into())));
        }
    }

    #[test]
    fn programs_that_play_tokens_are_known() {
        for (manufacturer, model) in [
            ("SoftHSM project", "SoftHSM v2"),
            ("Mozilla Foundation", "NSS 3"),
            ("Kryoptic Project", "v1"),
            ("IBM", "SW   TPM"),
        ] {
            assert!(device(manufacturer, model, "0.0", &[]).is_software(), "{model}");
        }
        for (manufacturer, model) in [("Yubico (www.yubico.com)", "YubiHSM"), ("Nitrokey", "NetHSM")] {
            assert!(!device(manufacturer, model, "0.0", &[]).is_software(), "{model}");
        }
    }
}
