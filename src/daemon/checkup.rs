//! What a doctor looks at in a ledger, while a daemon runs on it or not: nothing is changed, nothing
//! built, and no index is needed. What comes of it is for `attestctl doctor` to say.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::genesis::Genesis;
use super::offline::read_genesis;
use super::{Fault, anchors, governing, keys, opening, pin_latch};
use crate::anchor::{self, Anchor, Contradiction, Standing};
use crate::config::Config;
use crate::evidence::context;
use crate::governance::keyring::Keyring;
use crate::ledger::entry::Sequence;
use crate::ledger::key::PublicKey;
use crate::ledger::timestamp::Timestamp;
use crate::store::Reader;
use crate::token::{Expected, Identity, Keeper, Token, TokenError, TokenOptions};

/// A ledger that is looked at.
pub struct Examined {
    reader: Reader,
    genesis: Genesis,
    keys: Arc<Keyring>,
    /// The token of the newest key.
    token: Identity,
    path: PathBuf,
}

/// How an anchor stands, as it is said.
pub struct AnchorSeen {
    /// Which one.
    pub anchor: Anchor,
    /// How many entries it knows of and how many came after it, or what is wrong.
    pub standing: Result<(u64, u64), Contradiction>,
}

impl Examined {
    /// Opens the ledger at `path` for reading, and its entry 0.
    ///
    /// # Errors
    /// When it can't be read or is none.
    pub fn open(path: &Path) -> Result<Self, Fault> {
        let reader = Reader::open(path)?;
        let genesis = read_genesis(path, &reader)?;
        let keys = Arc::new(keys::found(&reader, &genesis)?);
        let token = keys::token_of_newest(&reader, &keys, &genesis)?;
        Ok(Examined { reader, genesis, keys, token, path: path.to_owned() })
    }

    /// For what is told by the file alone.
    #[must_use]
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Whose it is.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.genesis.origin
    }

    /// When the last committed entry was written, by its own word.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn last_written(&self) -> Result<Timestamp, Fault> {
        Ok(self.reader.head()?.timestamp)
    }

    /// Checks the last entries and the tree as a start does: which were checked, and what rules are in
    /// force after them, by their label.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check_end(&self) -> Result<((u64, u64), String), Fault> {
        // More may be committed meanwhile, so what is judged is asked where the end is.
        let (mut steps, mut scanned) = (Vec::new(), Sequence(0));
        let governor_at = |end| {
            (steps, scanned) = (context::scan(&self.reader, Sequence(0), end)?, end);
            governing::follow(&self.reader, &steps)
        };
        let verified = opening::check_tail(&self.reader, &self.genesis, governor_at)?;
        steps.extend(context::scan(&self.reader, scanned, Sequence(self.reader.count()?))?);
        let governor = governing::follow(&self.reader, &steps)?;
        opening::check_tree(&self.reader, &self.genesis, &governor.standing().keys, verified.0)?;
        Ok((verified, governor.standing().rules.label().to_owned()))
    }

    /// How the anchors stand that can be looked at without the token.
    ///
    /// # Errors
    /// When the ledger can't be read.
    pub fn anchors_off_token(&self, config: &Config) -> Result<Vec<AnchorSeen>, Fault> {
        anchors::off_token(config).into_iter().map(|anchor| self.judge(anchor)).collect()
    }

    fn judge(&self, anchor: Anchor) -> Result<AnchorSeen, Fault> {
        let ledger = anchor::Ledger { origin: &self.genesis.origin, keys: &self.keys, reader: &self.reader };
        let standing = match anchor::judge(&anchor, ledger)?.0 {
            Standing::Agrees { entries, lag } => Ok((entries, lag)),
            standing => Err(Contradiction { anchor: anchor.clone(), standing }),
        };
        Ok(AnchorSeen { anchor, standing })
    }

    /// What the daemon would be told to find the token: the one that holds the ledger's newest key.
    ///
    /// # Errors
    /// When the configuration says nothing that could be used.
    pub fn token_options(&self, config: &Config) -> Result<TokenOptions, Fault> {
        let Identity { serial, model, .. } = self.token.clone();
        let expected = Some(Expected { serial, model });
        Ok(TokenOptions {
            sessions: 1,
            ..TokenOptions::configured(&config.token, Some(pin_latch(config)), expected)?
        })
    }

    /// The key that the token must have.
    #[must_use]
    pub fn key(&self) -> &PublicKey {
        self.keys.newest().unwrap_or(&self.genesis.key)
    }

    /// Has the token prove that it has the ledger's key: it signs a text that is kept nowhere.
    ///
    /// # Errors
    /// That it is another key, or why it did not.
    pub fn prove(&self, token: &mut Token) -> Result<(), TokenError> {
        let (expected, found) = (self.key().id(), token.public_key().id());
        if expected != found {
            return Err(TokenError::OtherKey { expected, found });
        }
        token.prove_possession(&self.genesis.origin)
    }

    /// How the anchor on the token stands, where there is to be one. `token` is closed afterwards.
    ///
    /// # Errors
    /// When the ledger can't be read or the token can't be used.
    pub fn anchors_on_token(&self, config: &Config, token: Token) -> Result<Vec<AnchorSeen>, Fault> {
        let keeper =
            Arc::new(Keeper::new(self.token_options(config)?, self.key().clone(), &self.genesis.origin));
        keeper.take(token)?;
        anchors::on_token(config, &keeper).into_iter().map(|anchor| self.judge(anchor)).collect()
    }

    /// The same ledger, opened once more for another thread.
    ///
    /// # Errors
    /// As [`Examined::open`].
    pub fn again(&self) -> Result<Self, Fault> {
        Examined::open(&self.path)
    }
}

/// What the daemon would be told to find the token, where there is no ledger that names one.
///
/// # Errors
/// When the configuration says nothing that could be used.
pub fn token_options_without_ledger(config: &Config) -> Result<TokenOptions, Fault> {
    Ok(TokenOptions {
        sessions: 1,
        ..TokenOptions::configured(&config.token, Some(pin_latch(config)), None)?
    })
}
