/** `cloud-api-adaptor image push|list|use|rm|prune`: manages pod VM images. */
import {X509Certificate} from 'node:crypto';
import {readFile, stat} from 'node:fs/promises';
import {basename, join} from 'node:path';
import {inertWarnings, loadSettings, unknownVariables, type ValuesOf} from '../config/config.ts';
import {byteSize} from '../core/byte-size.ts';
import {AdaptorError, toError} from '../core/errors.ts';
import {listImages, pruneImages, removeImage, useImage, type CatalogueOptions, type Image} from '../image/catalogue.ts';
import {findCredentials} from '../image/credentials.ts';
import {HttpClient} from '../image/http.ts';
import {packImage} from '../image/pack.ts';
import {createPool} from '../image/pool.ts';
import {pushImage} from '../image/push.ts';
import {parseImageReference} from '../image/reference.ts';
import {Registry} from '../image/registry.ts';
import {archiveSource, isArchive} from '../image/oci-archive.ts';
import {fileSource, registrySource, type ImageSource} from '../image/source.ts';
import {KubernetesClient} from '../kubernetes/client.ts';
import {writeConfigMap} from '../kubernetes/config-map.ts';
import {apiServerAddress, ServiceAccount} from '../kubernetes/service-account.ts';
import {LibvirtConnectionError} from '../libvirt/wire/errors.ts';
import {openPipe} from '../libvirt/transport/open-pipe.ts';
import {LibvirtSession} from '../libvirt/session.ts';
import type {LibvirtUri} from '../libvirt/uri.ts';
import {createLogger, type Logger} from '../core/log.ts';
import {logObserver} from '../observers/log-observer.ts';
import {exitCode, type Command, type CommandContext} from './command.ts';
import {columns} from './text.ts';
import {buildKeys, imageSettings, pushSettings} from './image-settings.ts';
import {duration, Progress} from './progress.ts';

/** The default does not depend on the machine that pushes. */
const usualPlatform = 'linux/s390x';
/** A registry that sends nothing for this time is considered dead. */
const registrySilenceMs = 60_000;
const configMap = 'peer-pods-cm';
const usualKeep = 2;

const stageLabels = {comparing: 'Comparing', uploading: 'Uploading', checking: 'Checking '} as const;

export const pushCommand: Command = async (context, signal) => {
	const {env, flags, operands, host, out, err} = context;
	const values = loadSettings(pushSettings, env, host, flags);
	for (const {name, reason} of [...inertWarnings(buildKeys, env), ...unknownVariables(env)]) {
		err.write(`Warning: ${name} ${reason}\n`);
	}

	const writesConfigMap = values.updateConfigMap === 'yes' && flags['no-switch'] !== 'true';
	await using parts = new AsyncDisposableStack();
	const {session, log} = await connect(context, values, parts, signal);
	// Fail early: check the config map before the upload.
	const cluster = writesConfigMap ? await configMapOf(context, parts, log, signal) : undefined;
	const source = await sourceOf(operands[0] ?? values.imageUri, values.authFile, context, parts, signal);
	if (flags['create-pool'] === 'true') {
		const done = await createPool(session, values.pool, poolDirectory(values), signal);
		out.write(done.length === 0 ? '' : `Pool ${values.pool}: ${done.join(', ')}\n`);
	}

	out.write(`Pushing ${source.name} to the pool ${values.pool}\n`);
	const progress = new Progress({screen: err, clock: () => performance.now()});
	const startedAt = performance.now();
	const onStop = (): void => {
		progress[Symbol.dispose]();
		err.write('Stopping, and removing the incomplete volume\n');
	};
	signal.addEventListener('abort', onStop, {once: true});
	let pushed;
	try {
		pushed = await pushImage(
			{
				session,
				pool: values.pool,
				name: values.baseVolume,
				source,
				log,
				givesName: flags['no-switch'] !== 'true' && !writesConfigMap,
				reuses: flags['new-version'] !== 'true',
				onProgress: ({stage, done, total}) => progress.update(stageLabels[stage], done, total),
			},
			signal,
		);
	} finally {
		signal.removeEventListener('abort', onStop);
		progress[Symbol.dispose]();
	}

	for (const volume of pushed.removed) {
		out.write(`Removed ${volume}, left by an interrupted push\n`);
	}

	if (pushed.reused !== undefined) {
		const {source: earlier, pushedAt} = pushed.reused;
		out.write(
			`The pool has this content already, from ${earlier} at ${pushedAt.toISOString()}: no new version was made\n`,
		);
	}

	out.write(
		`${pushed.volume}: ${pushed.format}, ${byteSize(pushed.size)}, virtual size ${byteSize(pushed.virtualSize)}, ${pushed.digest}, in ${duration((performance.now() - startedAt) / 1000)}\n`,
	);
	if (pushed.source !== source.name) {
		out.write(`Source: ${pushed.source}\n`);
	}

	if (cluster !== undefined) {
		await cluster.write({LIBVIRT_VOL_NAME: pushed.volume, LIBVIRT_IMAGE_ID: pushed.volume}, signal);
		out.write(
			`LIBVIRT_VOL_NAME and LIBVIRT_IMAGE_ID of ${configMap} in ${cluster.namespace} are set to this volume\n` +
				'Warning: the operator restarts the daemon on every node for this, and running peer pods end with their daemon\n',
		);
	} else if (flags['no-switch'] === 'true') {
		out.write(
			`Not in use yet: set LIBVIRT_VOL_NAME=${pushed.volume}, or run "cloud-api-adaptor image use ${pushed.volume}"\n`,
		);
	} else {
		out.write(`${values.baseVolume} now points to it: new pod VMs use it, running pod VMs keep their image\n`);
	}

	return exitCode.ok;
};

export const listCommand: Command = async (context, signal) => {
	await using parts = new AsyncDisposableStack();
	const options = await catalogue(context, parts, signal);
	const images = await listImages(options, signal);
	context.out.write(context.flags['json'] === 'true' ? imagesJson(images, options) : imagesTable(images, options));
	return exitCode.ok;
};

export const packCommand: Command = async ({operands, flags, out, err}, signal) => {
	const [path = ''] = operands;
	const output = flags['o'] ?? `${basename(path).replace(/\.qcow2$/v, '')}.oci.tar`;
	using progress = new Progress({screen: err, clock: () => performance.now()});
	await using image = await fileSource(path).open(signal);
	const packed = await packImage({
		image,
		output,
		onProgress: ({stage, done, total}) => progress.update(stage === 'reading' ? 'Reading' : 'Writing', done, total),
	});
	progress[Symbol.dispose]();
	out.write(
		`${output}: ${byteSize(packed.size)}, ${usualPlatform}, ${packed.digest}, with ${packed.path}\n` +
			`Push it to a pool with "cloud-api-adaptor image push ${output}", or to a registry with "skopeo copy oci-archive:${output} docker://REGISTRY/NAME:TAG"\n`,
	);
	return exitCode.ok;
};

export const useCommand: Command = async (context, signal) => {
	await using parts = new AsyncDisposableStack();
	const options = await catalogue(context, parts, signal);
	const [volume = ''] = context.operands;
	await useImage(options, volume, signal);
	context.out.write(`${options.name} now points to ${volume}\n`);
	return exitCode.ok;
};

export const removeCommand: Command = async (context, signal) => {
	await using parts = new AsyncDisposableStack();
	const removed = await removeImage(
		await catalogue(context, parts, signal),
		context.operands[0] ?? '',
		context.flags['force'] === 'true',
		signal,
	);
	context.out.write(removed.map(volume => `Removed ${volume}\n`).join(''));
	return exitCode.ok;
};

export const pruneCommand: Command = async (context, signal) => {
	const keep = Number(context.flags['keep'] ?? usualKeep);
	if (!Number.isSafeInteger(keep) || keep < 1) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: `-keep is ${JSON.stringify(context.flags['keep'])}; expected a whole number from 1`,
		});
	}

	await using parts = new AsyncDisposableStack();
	const removed = await pruneImages(await catalogue(context, parts, signal), keep, signal);
	context.out.write(
		removed.length === 0 ? 'Nothing to remove\n' : removed.map(volume => `Removed ${volume}\n`).join(''),
	);
	return exitCode.ok;
};

async function catalogue(
	context: CommandContext,
	parts: AsyncDisposableStack,
	signal: AbortSignal,
): Promise<CatalogueOptions> {
	const values = loadSettings(imageSettings, context.env, context.host, context.flags);
	const {session} = await connect(context, values, parts, signal);
	return {session, pool: values.pool, name: values.baseVolume, now: new Date()};
}

async function connect(
	{logTo, processContext: {home, user, uid, sshAgentSocket}, env, err}: CommandContext,
	{libvirtUri: uri, logLevel}: ValuesOf<typeof imageSettings>,
	parts: AsyncDisposableStack,
	signal: AbortSignal,
): Promise<{readonly session: LibvirtSession; readonly log: Logger}> {
	// A person reads the result. The log of the client is only written on request.
	const log = await createLogger({
		level: env['LOG_LEVEL'] === undefined ? 'error' : logLevel,
		format: 'pretty',
		destination: logTo,
	});
	for (const warning of uri.warnings) {
		err.write(`Warning: LIBVIRT_URI ${warning}\n`);
	}

	const session = parts.use(
		new LibvirtSession({
			openPipe: openPipe(uri, {log, home, user, uid, agentSocket: sshAgentSocket}),
			uri: uri.remoteUri,
			observer: logObserver(log),
		}),
	);
	try {
		await session.connect(signal);
	} catch (error) {
		throw error instanceof LibvirtConnectionError && error.remedy === undefined ? withWay(error, uri) : error;
	}

	return {session, log};
}

/** Adds the place and a remedy to errors of a broken or silent connection. */
function withWay({code, what, where, cause}: AdaptorError, {text}: LibvirtUri): AdaptorError {
	return new AdaptorError({
		code,
		what,
		where: {...where, uri: text},
		remedy: 'Run "cloud-api-adaptor check" to test the connection to the KVM host.',
		cause,
	});
}

async function sourceOf(
	operand: string | undefined,
	authFile: string | undefined,
	{env, flags, processContext: {home}}: CommandContext,
	parts: AsyncDisposableStack,
	signal: AbortSignal,
): Promise<ImageSource> {
	if (operand === undefined) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'No image to push',
			remedy: 'Name a file or an image reference, or set PODVM_IMAGE_URI. This program pushes images and builds none.',
		});
	}

	const {'registry-ca': caFile, 'plain-http': plainHosts, 'local-host': localHosts, platform = usualPlatform} = flags;
	const {os, architecture} = /^(?<os>[a-z0-9]+)\/(?<architecture>[a-z0-9]+)$/v.exec(platform)?.groups ?? {};
	if (os === undefined || architecture === undefined) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: `-platform is ${JSON.stringify(platform.slice(0, 100))}; expected OS/ARCHITECTURE, such as ${usualPlatform}`,
		});
	}

	// A reference may contain slashes, too. So it is a path if it looks like one, or if the file exists.
	if (
		/^\.{0,2}\//v.test(operand) ||
		/^[^:]*\.(?:qcow2|raw|img|tar)$/v.test(operand) ||
		(!operand.startsWith('oci::') && (await isFile(operand)))
	) {
		return (await isArchive(operand, signal)) ? archiveSource(operand, {os, architecture}) : fileSource(operand);
	}

	const reference = parseImageReference(operand);
	const http = parts.use(
		new HttpClient({
			...(caFile === undefined ? {} : {ca: await readCa(caFile)}),
			proxyEnv: Object.fromEntries(
				['HTTP_PROXY', 'HTTPS_PROXY', 'NO_PROXY']
					.flatMap(name => [name, name.toLowerCase()])
					.map(name => [name, env[name]]),
			),
			plainHosts: hostsOf(plainHosts),
			localHosts: hostsOf(localHosts),
			silenceMs: registrySilenceMs,
		}),
	);
	const credentials = await findCredentials(reference, authFile, [
		join(env['DOCKER_CONFIG'] ?? join(home, '.docker'), 'config.json'),
		...(env['XDG_RUNTIME_DIR'] === undefined ? [] : [join(env['XDG_RUNTIME_DIR'], 'containers/auth.json')]),
		join(home, '.config/containers/auth.json'),
		'/root/containers/auth.json',
	]);
	return registrySource(new Registry(http, reference, credentials), reference, {os, architecture});
}

function hostsOf(list = ''): ReadonlySet<string> {
	return new Set(
		list
			.split(',')
			.map(host => host.trim())
			.filter(host => host !== ''),
	);
}

async function isFile(path: string): Promise<boolean> {
	return stat(path).then(
		stats => stats.isFile(),
		() => false,
	);
}

async function readCa(path: string): Promise<readonly string[]> {
	try {
		const text = await readFile(path, 'utf8');
		// TLS clients silently ignore text that is not a certificate, so check it here.
		new X509Certificate(text);
		return [text];
	} catch (error) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: `Could not read the registry's certificate authority: ${toError(error).message}`,
			where: {path},
			remedy: 'Name a file of certificates in PEM ("-----BEGIN CERTIFICATE-----") in -registry-ca.',
			cause: error,
		});
	}
}

function poolDirectory({pool, poolDirectory: directory}: ValuesOf<typeof pushSettings>): string {
	const usual = '/var/lib/libvirt/images';
	return directory ?? (pool === 'default' ? usual : `${usual}/${pool}`);
}

interface ClusterConfigMap {
	readonly namespace: string;
	write(data: Readonly<Record<string, string>>, signal: AbortSignal): Promise<void>;
}

async function configMapOf(
	{env, flags}: CommandContext,
	parts: AsyncDisposableStack,
	log: Logger,
	signal: AbortSignal,
): Promise<ClusterConfigMap> {
	const server = apiServerAddress(env);
	if (server === undefined) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: `Could not update ${configMap}: this is not a pod of a cluster`,
			remedy: 'Run it in the cluster, or without UPDATE_PEERPODS_CM, and set LIBVIRT_VOL_NAME by hand.',
		});
	}

	const account = new ServiceAccount();
	const {namespace = await account.namespace()} = flags;
	const client = parts.use(new KubernetesClient({server, account, log}));
	// An empty write changes nothing, but verifies that the config map exists and may be changed.
	await writeConfigMap(client, {name: configMap, namespace}, {}, signal);
	return {
		namespace,
		write: async (data, signal) => writeConfigMap(client, {name: configMap, namespace}, data, signal),
	};
}

function imagesJson(images: readonly Image[], {pool, name}: CatalogueOptions): string {
	const plain = images.map(({volume, format, size, virtualSize, madeAt, completeness, isCurrent, use, origin}) => ({
		volume,
		format,
		sizeBytes: Number(size),
		virtualSizeBytes: Number(virtualSize),
		madeAt: madeAt?.toISOString() ?? null,
		state: completeness,
		current: isCurrent,
		usedBy: use,
		source: origin?.source ?? null,
		digest: origin?.digest ?? null,
		manifestDigest: origin?.container?.manifest ?? null,
		pushedAt: origin?.pushedAt.toISOString() ?? null,
	}));
	return `${JSON.stringify({pool, name, images: plain}, undefined, '\t')}\n`;
}

function imagesTable(images: readonly Image[], {pool, name, now}: CatalogueOptions): string {
	if (images.length === 0) {
		return `The pool ${pool} has no images\n`;
	}

	const rows = [
		['', 'NAME', 'SIZE', 'VIRTUAL SIZE', 'USED BY', 'AGE', 'DIGEST', 'FROM', ''],
		...images.map(({volume, size, virtualSize, madeAt, completeness, isCurrent, use, origin}) => [
			isCurrent ? '*' : '',
			volume,
			byteSize(size),
			byteSize(virtualSize),
			use.domains.length > 0
				? `${use.domains.length} VM${use.domains.length > 1 ? 's' : ''}`
				: use.volumes.length > 0
					? `${use.volumes.length} volume${use.volumes.length > 1 ? 's' : ''}`
					: '-',
			madeAt === undefined
				? '-'
				: duration(Math.max(0, (now.getTime() - madeAt.getTime()) / 1000)).replace(/\.\d/v, ''),
			// As long as podman shows ids.
			(origin?.container?.manifest ?? origin?.digest ?? '-').slice(0, 'sha256:'.length + 12),
			origin?.source ?? '-',
			completeness === 'complete'
				? ''
				: completeness === 'under way'
					? 'incomplete, push in progress'
					: 'incomplete, push interrupted',
		]),
	];
	return `${columns(rows)}\n${images.some(({isCurrent}) => isCurrent) ? `* ${name} points to this image\n` : `${name} does not exist: pods that name no image cannot start\n`}`;
}
