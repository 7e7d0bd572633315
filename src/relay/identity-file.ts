/**
 * Stores the own CA and client certificate in one file, so that running VMs accept the daemon after a restart, and also
 * a second daemon during a rolling update. If several daemons start at once, the first one that links the complete file
 * to its path creates it for all. An unusable file is renamed, never overwritten, because running VMs may use its CA.
 */
import {createPrivateKey, randomBytes, X509Certificate} from 'node:crypto';
import {constants} from 'node:fs';
import {chmod, link, mkdir, open, rename, unlink} from 'node:fs/promises';
import {join} from 'node:path';
import {AdaptorError} from '../core/errors.ts';
import {fileProblem} from '../core/file-error.ts';
import {parseJson, textAt} from '../core/json.ts';
import {Secret, type Logger} from '../core/log.ts';
import {present} from '../core/present.ts';
import {makeCa, makeClientCertificate, type KeyPair, type Validity} from './certificates.ts';
import {clockReason, latestStart} from './clock.ts';

/** The names that forwarders in existing pod VM images expect. */
const caName = 'agent-protocol-forwarder';
const clientName = 'cloud-api-adaptor';

const dayMs = 86_400_000;
/** The clock of a VM may be behind until it is synchronised. One day is enough. */
const backdatedMs = dayMs;
/**
 * Nothing renews the certificates while a VM runs, so they must outlive the longest pod. A reboot of the node removes
 * the file.
 */
const lifetimeMs = 3650 * dayMs;
/** A CA with less remaining validity is replaced. */
const leastRemainingMs = 30 * dayMs;

export interface OwnIdentity {
	readonly ca: KeyPair;
	readonly client: KeyPair;
}

export interface IdentityFileOptions {
	readonly directory: string;
	readonly log: Logger;
	readonly now: () => Date;
}

const fileName = 'identity.json';

/** The stored identity, or why it is unusable; undefined if there is none. Changes nothing. */
export async function lookAtIdentity(directory: string, now: Date): Promise<OwnIdentity | string | undefined> {
	const path = join(directory, fileName);
	const found = await read(path).catch(async (error: unknown) => {
		const {reason, where, remedy} = await fileProblem(error, path);
		throw new AdaptorError({
			code: 'failed-precondition',
			what: `Could not read the keys for the connections to VMs: ${reason}`,
			where,
			...present({remedy}),
			cause: error,
		});
	});
	return found === undefined ? undefined : judge(found.text, now);
}

/** @throws 'failed-precondition' if the directory is not writable */
export async function keepIdentity({directory, log, now}: IdentityFileOptions): Promise<OwnIdentity> {
	const path = join(directory, fileName);
	try {
		await mkdir(directory, {recursive: true, mode: 0o700});
		await chmod(directory, 0o700);
		for (;;) {
			const found = await read(path);
			if (found === undefined) {
				await make(path, now());
				continue;
			}

			const verdict = judge(found.text, now());
			if (typeof verdict !== 'string') {
				log.debug({path, certificate: new X509Certificate(verdict.ca.cert).fingerprint256}, 'identity loaded');
				warnOfClock(path, verdict, now(), log);
				return verdict;
			}

			await setAside(path, found, verdict, log);
		}
	} catch (error) {
		const {reason, where, remedy} = await fileProblem(error, path);
		throw new AdaptorError({
			code: 'failed-precondition',
			what: `Could not store the keys for the connections to VMs: ${reason}`,
			where,
			remedy:
				remedy ??
				`Make ${directory} writable for this process, on a file system with hard links (such as tmpfs).`,
			cause: error,
		});
	}
}

/** Creates the file atomically: writes a temporary file, then links it. An existing file stays. */
async function make(path: string, now: Date): Promise<void> {
	const validity: Validity = {
		notBefore: new Date(now.getTime() - backdatedMs),
		notAfter: new Date(now.getTime() + lifetimeMs),
	};
	const [ca, client] = await Promise.all([makeCa(caName, validity), makeClientCertificate(clientName, validity)]);
	const text = JSON.stringify(
		{
			caCert: ca.cert,
			caKey: ca.key.reveal(),
			clientCert: client.cert,
			clientKey: client.key.reveal(),
		},
		undefined,
		'\t',
	);
	const draft = `${path}.${randomName()}`;
	const file = await open(draft, 'wx', 0o600);
	try {
		await file.writeFile(text);
		await file.sync();
	} finally {
		await file.close();
	}

	try {
		await link(draft, path);
	} catch (error) {
		if (!isCode(error, 'EEXIST')) {
			throw error;
		}
	} finally {
		await unlink(draft);
	}
}

interface Found {
	readonly text: string;
	readonly inode: bigint;
}

async function read(path: string): Promise<Found | undefined> {
	try {
		const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
		try {
			const {ino} = await file.stat({bigint: true});
			return {text: await file.readFile('utf8'), inode: ino};
		} finally {
			await file.close();
		}
	} catch (error) {
		if (isCode(error, 'ENOENT')) {
			return undefined;
		}

		throw error;
	}
}

/** The identity in the text, or why the text is unusable. */
function judge(text: string, now: Date): OwnIdentity | string {
	let parts: unknown;
	try {
		parts = parseJson(text);
	} catch {
		return 'it is damaged or was not written by this program';
	}

	const ca = keyPair(textAt(parts, 'caCert'), textAt(parts, 'caKey'), caName);
	const client = keyPair(textAt(parts, 'clientCert'), textAt(parts, 'clientKey'), clientName);
	if (ca === undefined || client === undefined) {
		return 'it is not from this program';
	}

	// A CA that is not valid yet stays, because running VMs use it: the clock of this node is wrong and will be set.
	const soon = new Date(now.getTime() + leastRemainingMs);
	for (const {cert} of [ca, client]) {
		const {validFromDate, validToDate} = new X509Certificate(cert);
		if (validToDate < soon) {
			return `it is valid from ${validFromDate.toISOString()} to ${validToDate.toISOString()}`;
		}
	}

	return {ca, client};
}

/** Until the clock is correct, TLS refuses every VM, and dialling continues. */
function warnOfClock(path: string, {ca, client}: OwnIdentity, now: Date, log: Logger): void {
	const begins = latestStart([ca.cert, client.cert]);
	if (begins > now) {
		log.warn(
			{
				path,
				reason: clockReason(now, begins),
				remedy: 'Correct the clock of this node; then pod VMs can be reached. If the clock is already correct, it was wrong when the file was created: remove the file and delete the running pods.',
			},
			'identity is not valid yet; keeping it',
		);
	}
}

/** A certificate with this name, and its key; undefined for anything else. */
function keyPair(cert: string | undefined, key: string | undefined, name: string): KeyPair | undefined {
	if (cert === undefined || key === undefined) {
		return undefined;
	}

	try {
		const parsed = new X509Certificate(cert);
		return parsed.subject === `CN=${name}` && parsed.checkPrivateKey(createPrivateKey(key))
			? {cert, key: new Secret(key)}
			: undefined;
	} catch {
		return undefined;
	}
}

async function setAside(path: string, judged: Found, reason: string, log: Logger): Promise<void> {
	const aside = `${path}.unusable-${randomName()}`;
	try {
		await rename(path, aside);
	} catch (error) {
		if (isCode(error, 'ENOENT')) {
			return;
		}

		throw error;
	}

	// Another daemon may have replaced the file between the check and the rename. In that case, the renamed file is the
	// valid one of the other daemon, and is moved back.
	const moved = await read(aside);
	if (moved !== undefined && moved.inode !== judged.inode) {
		try {
			await link(aside, path);
			await unlink(aside);
			return;
		} catch (error) {
			if (!isCode(error, 'EEXIST')) {
				throw error;
			}
		}
	}

	log.warn({path: aside, reason}, 'unusable identity renamed; VMs that use it can no longer be reached');
}

function randomName(): string {
	return randomBytes(4).toString('hex');
}

function isCode(error: unknown, code: string): boolean {
	return error instanceof Error && 'code' in error && error.code === code;
}
