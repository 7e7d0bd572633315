/**
 * The certificate and key of the server, in files that others replace: kubelet swaps the symbolic link `..data` of a
 * mounted secret, other programs write the two files one after the other. An incomplete pair is refused and the last
 * good one kept; a lasting problem is logged. Reads the two small files every few seconds instead of relying on
 * notifications of the file system.
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
	/** Contains `tls.crt`, a chain in PEM, and `tls.key`. */
	readonly directory: string;
	/** The other options of the context; a pair must be compatible with them. */
	readonly tls: Pick<SecureContextOptions, 'minVersion' | 'ciphers'>;
	readonly intervalMs: number;
	readonly log: Logger;
	/** Called with each new complete pair; the first call is made before the promise resolves. */
	readonly onChange: (options: SecureContextOptions) => void;
}

interface Pair {
	readonly cert: string;
	readonly key: Secret<string>;
}

/**
 * @returns disposing stops the checks
 * @throws AdaptorError 'failed-precondition' if there is no usable pair at first
 */
export async function followTlsFiles({
	directory,
	tls,
	intervalMs,
	log,
	onChange,
}: TlsFilesOptions): Promise<AsyncDisposable> {
	let used: Pair | undefined;
	/** The result of the last check. */
	let met: string | undefined;
	const lasting = new FailureLog();
	const look = async (): Promise<void> => {
		const pair = await readPair(directory);
		if (pair.cert === used?.cert && pair.key.reveal() === used.key.reveal()) {
			return;
		}

		const options = {...tls, cert: pair.cert, key: pair.key.reveal()};
		const leaf = new X509Certificate(pair.cert);
		// Node treats an empty key as none, and would create a context with which no handshake succeeds.
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
				// If the pair is replaced while its two files are read, one check fails. A problem that persists is
				// logged once.
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
	// One after the other: if both are missing, the error always names the same one.
	const cert = await readFile(join(directory, 'tls.crt'), 'utf8');
	return {cert, key: new Secret(await readFile(join(directory, 'tls.key'), 'utf8'))};
}
