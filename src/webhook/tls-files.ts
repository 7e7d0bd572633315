/**
 * The server's certificate and key, as files that somebody else replaces: kubelet swaps the symbolic link `..data` of a
 * mounted secret, others write the two files one after the other. Whatever is seen in between is refused and the last
 * good pair kept; it is told when it lasts. Looks every few seconds rather than watching: two small files, and no file
 * system's notifications to depend on.
 */
import {createPrivateKey, X509Certificate} from 'node:crypto';
import {readFile} from 'node:fs/promises';
import {join} from 'node:path';
import {createSecureContext, type SecureContextOptions} from 'node:tls';
import {every} from '../core/concurrency/every.ts';
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {AdaptorError} from '../core/errors.ts';
import {Secret, type Logger} from '../core/log.ts';

export interface TlsFilesOptions {
	/** Holds `tls.crt`, a chain in PEM, and `tls.key`. */
	readonly directory: string;
	/** What else the context is made of; a pair must fit to it. */
	readonly tls: Pick<SecureContextOptions, 'minVersion' | 'ciphers'>;
	readonly intervalMs: number;
	readonly log: Logger;
	/** A pair that is whole, to be used from now on; called before this resolves, and for each later one. */
	readonly onChange: (options: SecureContextOptions) => void;
}

interface Pair {
	readonly cert: string;
	readonly key: Secret<string>;
}

/**
 * @returns disposing stops looking
 * @throws AdaptorError 'failed-precondition' when there is no usable pair to begin with
 */
export async function followTlsFiles({
	directory,
	tls,
	intervalMs,
	log,
	onChange,
}: TlsFilesOptions): Promise<AsyncDisposable> {
	let used: Pair | undefined;
	/** What the last look met. */
	let met: string | undefined;
	const lasting = new FailureLog();
	const look = async (): Promise<void> => {
		const pair = await readPair(directory);
		if (pair.cert === used?.cert && pair.key.reveal() === used.key.reveal()) {
			return;
		}

		const options = {...tls, cert: pair.cert, key: pair.key.reveal()};
		const leaf = new X509Certificate(pair.cert);
		// Node takes an empty key for none, and would make a context that no handshake succeeds with.
		if (!leaf.checkPrivateKey(createPrivateKey(options.key))) {
			throw new AdaptorError({
				code: 'failed-precondition',
				what: 'The key does not match the certificate',
				where: {directory},
			});
		}

		createSecureContext(options);
		onChange(options);
		const {fingerprint256: certificate, validFrom, validTo} = leaf;
		log.info(
			{path: directory, certificate, reason: `valid from ${validFrom} to ${validTo}`},
			'TLS certificate loaded',
		);
		used = pair;
	};

	try {
		await look();
	} catch (cause) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'The certificate of the webhook is unusable',
			where: {directory},
			remedy: 'Mount a secret there with a certificate as tls.crt and its private key as tls.key, or set WEBHOOK_CERT_DIR.',
			cause,
		});
	}

	const ending = new AbortController();
	const following = (async () => {
		for await (const _ of every(intervalMs, ending.signal)) {
			try {
				await look();
				met = undefined;
				lasting.recovered();
			} catch (error) {
				const failure = String(error);
				// A pair that is swapped between the reading of one file and of the other looks broken, once. What
				// lasts is told, once too.
				if (met === failure && lasting.failed(failure)) {
					log.warn({path: directory, err: error}, 'new TLS certificate is unusable; keeping the old one');
				}

				met = failure;
			}
		}
	})();
	return {
		async [Symbol.asyncDispose]() {
			ending.abort();
			await following;
		},
	};
}

async function readPair(directory: string): Promise<Pair> {
	// One after the other: of two that are missing it is always the same that is told.
	const cert = await readFile(join(directory, 'tls.crt'), 'utf8');
	return {cert, key: new Secret(await readFile(join(directory, 'tls.key'), 'utf8'))};
}
