/**
 * Our own CA and client certificate, kept in one file so that a restart, or a second daemon during a rolling update, is
 * the same identity to running VMs: whoever links the finished file into place first has made it for all. What is there
 * and cannot be used is set aside, never overwritten: VMs that still run were issued by it.
 */
import {createPrivateKey, randomBytes, X509Certificate} from 'node:crypto';
import {constants} from 'node:fs';
import {chmod, link, mkdir, open, rename, unlink} from 'node:fs/promises';
import {join} from 'node:path';
import {AdaptorError} from '../core/errors.ts';
import {parseJson, textAt} from '../core/json.ts';
import {Secret, type Logger} from '../core/log.ts';
import {makeCa, makeClientCertificate, type KeyPair, type Validity} from './certificates.ts';
import {clockReason, latestStart} from './clock.ts';

/** The names that existing pod VM images' forwarders see. */
const caName = 'agent-protocol-forwarder';
const clientName = 'cloud-api-adaptor';

const dayMs = 86_400_000;
/** The VM's clock may be behind ours until it has been set: a day covers it, and costs nothing. */
const backdatedMs = dayMs;
/**
 * Nothing renews these while a VM runs, so they outlive the longest pod. The file itself does not outlive a reboot of
 * the node.
 */
const lifetimeMs = 3650 * dayMs;
/** What is left must be worth issuing from. */
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

/** What is kept there, or why it cannot be used; undefined when there is nothing. Changes nothing. */
export async function lookAtIdentity(directory: string, now: Date): Promise<OwnIdentity | string | undefined> {
	const found = await read(join(directory, fileName));
	return found === undefined ? undefined : judge(found.text, now);
}

/** @throws 'failed-precondition' when the directory cannot be written */
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
				log.debug(
					{path, certificate: new X509Certificate(verdict.ca.cert).fingerprint256},
					'identity taken up',
				);
				warnOfClock(path, verdict, now(), log);
				return verdict;
			}

			await setAside(path, found, verdict, log);
		}
	} catch (error) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'Could not keep the keys for the connections to VMs',
			where: {directory},
			remedy: 'The directory has to be writable by this process, on a file system with hard links (a tmpfs is fine).',
			cause: error,
		});
	}
}

/** Complete or not there at all: written aside, then linked. Another's file that came first stays. */
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

/** The identity, or why there is none in this text. */
function judge(text: string, now: Date): OwnIdentity | string {
	let parts: unknown;
	try {
		parts = parseJson(text);
	} catch {
		return 'it is torn or not ours';
	}

	const ca = keyPair(textAt(parts, 'caCert'), textAt(parts, 'caKey'), caName);
	const client = keyPair(textAt(parts, 'clientCert'), textAt(parts, 'clientKey'), clientName);
	if (ca === undefined || client === undefined) {
		return 'it is not ours';
	}

	// One that is not valid yet stays: this node's clock is wrong, and will be set. VMs that run were issued by it.
	const soon = new Date(now.getTime() + leastRemainingMs);
	for (const {cert} of [ca, client]) {
		const {validFromDate, validToDate} = new X509Certificate(cert);
		if (validToDate < soon) {
			return `it is valid from ${validFromDate.toISOString()} to ${validToDate.toISOString()}`;
		}
	}

	return {ca, client};
}

/** Until the clock is right, TLS refuses every VM; dialling goes on meanwhile. */
function warnOfClock(path: string, {ca, client}: OwnIdentity, now: Date, log: Logger): void {
	const begins = latestStart([ca.cert, client.cert]);
	if (begins > now) {
		log.warn(
			{
				path,
				reason: clockReason(now, begins),
				remedy: "Set this node's clock; pod VMs can be reached then. If the clock is right, it was wrong when the file was made: remove the file, and delete the pods that run.",
			},
			'identity is not valid yet and is kept',
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

	// Another daemon may have replaced what we judged, between our look and our rename: then this is its good one, and
	// goes back.
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

	log.warn(
		{path: aside, reason},
		'identity set aside, a new one is made: VMs that were issued by it cannot be reached again',
	);
}

function randomName(): string {
	return randomBytes(4).toString('hex');
}

function isCode(error: unknown, code: string): boolean {
	return error instanceof Error && 'code' in error && error.code === code;
}
