/**
 * The image: the files that it would hold, put together by its Dockerfile's own steps, and the daemon in them, started
 * as the operator's DaemonSet starts it, in the lab. Source of mounts and environment:
 * openshift/sandboxed-containers-operator, controllers, DaemonSet osc-caa-ds.
 */
import {execFileSync, spawnSync, type SpawnSyncReturns} from 'node:child_process';
import {cpSync, lstatSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync} from 'node:fs';
import {mkdir} from 'node:fs/promises';
import {dirname, join} from 'node:path';
import {fileURLToPath} from 'node:url';
import test from 'ava';
import {commands} from '../../src/cli/commands.ts';
import {AgentClient, runCommand, startSleeper} from '../lab/agent-client.ts';
import {hypervisorSocket} from '../lab/daemon.ts';
import {buildGuestImage} from '../lab/image.ts';
import {startLab, type Lab} from '../lab/lab.ts';
import {Service} from '../lab/service.ts';
import {newSandboxId, podAnnotations, Shim} from '../lab/shim.ts';
import {names, paths, subnet} from '../lab/topology.ts';
import {makeCa} from '../../src/relay/certificates.ts';
import {connect} from '../../src/ttrpc/client.ts';
import {contextOf, parseDockerfile, play, type Image} from './dockerfile.ts';

const repository = fileURLToPath(new URL('../..', import.meta.url));
const read = (name: string): string => readFileSync(join(repository, name), 'utf8');
const stages = parseDockerfile(read('Dockerfile.s390x'));
const {signal} = new AbortController();
const nodeDirectory = dirname(process.execPath);
/** What the base image says (sclorg/s2i-nodejs-container, 24-minimal/Dockerfile.rhel9), as far as it could matter. */
const baseEnv = {
	APP_ROOT: '/opt/app-root',
	HOME: '/opt/app-root/src',
	NPM_RUN: 'start',
	PLATFORM: 'el9',
	NODEJS_VERSION: '24',
	NAME: 'nodejs',
	NPM_CONFIG_PREFIX: '/opt/app-root/src/.npm-global',
	PATH: '/opt/app-root/src/node_modules/.bin/:/opt/app-root/src/.npm-global/bin/:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
};
let directory: string;
let image: Image;

test.after.always(() => rmSync(directory, {recursive: true, force: true}));

test.before(async t => {
	t.timeout(600_000);
	await mkdir(join(repository, '.cache'), {recursive: true});
	directory = mkdtempSync(join(repository, '.cache/container-'));
	image = await play(stages, {
		repository,
		directory,
		env: {
			PATH: `${nodeDirectory}:${process.env['PATH'] ?? ''}`,
			HOME: directory,
			npm_config_offline: 'true',
			npm_config_update_notifier: 'false',
		},
		stand(command, cwd) {
			if (command.startsWith('npm ci ')) {
				// The modules that `npm ci` has put here, from the same lock file. Links: npm takes packages away and
				// changes none, but for its own list.
				t.is(read('node_modules/.installed-lock'), readFileSync(join(cwd, 'package-lock.json'), 'utf8'));
				execFileSync('cp', ['--archive', '--link', join(repository, 'node_modules'), cwd]);
				rmSync(join(cwd, 'node_modules/.package-lock.json'));
				cpSync(
					join(repository, 'node_modules/.package-lock.json'),
					join(cwd, 'node_modules/.package-lock.json'),
				);
				return true;
			}

			// Needs /opt to be the image's: a test below does it.
			return command === 'cloud-api-adaptor version';
		},
	});
});

function files(below: string): string[] {
	return readdirSync(below, {recursive: true, withFileTypes: true})
		.filter(entry => !entry.isDirectory())
		.map(({parentPath, name}) => join(parentPath, name));
}

test('both stages use the same base image, and only the base image names a registry', t => {
	t.deepEqual(
		stages.map(({base}) => base),
		Array.from({length: 2}, () => 'registry.access.redhat.com/ubi9/nodejs-24-minimal:latest'),
	);
	t.notRegex(read('Dockerfile.s390x').replaceAll(/^ARG BASE=.*$/gmv, ''), /https?:|registry|\.com\//);
});

test('the build context has nothing that is not copied', t => {
	const copied = stages
		.flatMap(({instructions}) => instructions)
		.filter(({name, rest}) => name === 'COPY' && !rest.startsWith('--from'))
		.flatMap(({rest}) => rest.split(' ').slice(0, -1));
	t.deepEqual(
		[...new Set(copied.map(path => path.split('/')[0]))].toSorted(),
		[...contextOf(read('.dockerignore'))].toSorted(),
	);
});

test('every program that the daemon runs is in a package that is installed', t => {
	const [install = ''] = image.notRun;
	t.is(image.notRun.length, 1);
	const programs = new Set(
		['network/iproute2.ts', 'network/tunnel-guard.ts', 'journal/daemon-lock.ts'].flatMap(name =>
			[...read(`src/${name}`).matchAll(/'(ip|tc|nft|nsenter|flock|bridge|ethtool|iptables|sysctl)',/gv)].map(
				([, program]) => program,
			),
		),
	);
	const packages: Readonly<Record<string, string>> = {
		ip: 'iproute',
		tc: 'iproute-tc',
		nft: 'nftables',
		nsenter: 'util-linux',
		flock: 'util-linux',
	};
	t.deepEqual([...programs].map(program => packages[program ?? '']).toSorted(), [
		'iproute',
		'iproute-tc',
		'nftables',
		'util-linux',
		'util-linux',
	]);
	for (const name of Object.values(packages)) {
		t.true(install.split(' ').includes(name), name);
	}
});

test('it contains exactly the production packages of the lock file, and no machine-specific files', t => {
	const application = join(image.root, 'opt/cloud-api-adaptor');
	const {packages} = JSON.parse(read('package-lock.json')) as {
		packages: Record<string, {dev?: boolean; devOptional?: boolean; optional?: boolean}>;
	};
	const production = Object.entries(packages)
		.filter(([path, {dev, devOptional, optional}]) => path !== '' && !dev && !devOptional && !optional)
		.map(([path]) => path);
	const present = files(application)
		.filter(path => /node_modules\/(?:@[^\/]+\/)?[^\/@]+\/package\.json$/v.test(path))
		.map(path => path.slice(application.length + 1, -'/package.json'.length));
	t.deepEqual(present.toSorted(), production.toSorted());
	t.deepEqual(
		files(image.root).filter(path => /\.(?:node|so|a|o)$/v.test(path)),
		[],
	);
	t.deepEqual(
		files(join(application, 'dist')).filter(path => !path.endsWith('.js')),
		[],
	);
	const bytes = files(image.root).reduce((sum, path) => sum + lstatSync(path).size, 0);
	t.log(`${(bytes / 2 ** 20).toFixed(1)} MiB in ${files(image.root).length} files on top of the base image`);
	t.true(bytes < 40 * 2 ** 20, String(bytes));
});

test('its scripts are executable, also for git', t => {
	t.deepEqual(image.command, ['/usr/local/bin/entrypoint.sh']);
	for (const name of readdirSync(join(image.root, 'usr/local/bin'))) {
		t.is(statSync(join(image.root, 'usr/local/bin', name)).mode & 0o777, 0o755, name);
	}

	// Of git, the one bit that it keeps.
	const tracked = execFileSync('git', ['ls-files', '--stage', 'container'], {cwd: repository, encoding: 'utf8'})
		.trim()
		.split('\n')
		.filter(line => line !== '');
	t.deepEqual(
		tracked.filter(line => !line.startsWith('100755')),
		[],
	);
});

/**
 * Makes this machine's mount namespace the image's, where it matters; then runs what is left of the arguments in its
 * environment.
 */
const enter = `
	image=$1; node=$2; shift 2
	mkdir -p /run/image /run/node
	mount --bind "$image" /run/image
	mount --bind "$node" /run/node
	mount -t tmpfs tmpfs /opt
	mkdir /opt/cloud-api-adaptor
	mount --bind -o ro /run/image/opt/cloud-api-adaptor /opt/cloud-api-adaptor
	mount -t tmpfs tmpfs /usr/local
	mkdir /usr/local/bin
	cp -p /run/image/usr/local/bin/* /usr/local/bin/
	ln -s /run/node/node /usr/local/bin/node
`;

function inImage(argv: readonly string[], env: Readonly<Record<string, string>> = {}): SpawnSyncReturns<string> {
	const words = Object.entries({...baseEnv, ...image.env, ...env}).map(([name, value]) => `${name}=${value}`);
	return spawnSync(
		'unshare',
		[
			'--mount',
			'sh',
			'-euc',
			`mount -t tmpfs tmpfs /run\n${enter}\nexec env --ignore-environment "$@"`,
			'sh',
			image.root,
			nodeDirectory,
			...words,
			...argv,
		],
		{encoding: 'utf8', cwd: '/'},
	);
}

test('every command is there, on the path', t => {
	const version = inImage(['cloud-api-adaptor', 'version']);
	t.regex(version.stdout, /^cloud-api-adaptor \d.*\ncommit unknown\n/, version.stderr);
	for (const name of Object.keys(commands)) {
		const help = inImage(['cloud-api-adaptor', 'help', ...name.split(' ')]);
		t.true(help.stdout.startsWith(`Usage: cloud-api-adaptor ${name}`), help.stdout + help.stderr);
	}
});

test('the webhook runs as a user without an entry in /etc/passwd', t => {
	const {status, stderr} = inImage(
		[
			'setpriv',
			'--reuid',
			'1000650000',
			'--regid',
			'0',
			'--clear-groups',
			'cloud-api-adaptor',
			'webhook',
			'-cert-dir',
			'/nonexistent',
		],
		{HOME: '/'},
	);
	t.is(status, 1, stderr);
	t.regex(stderr, /The certificate of the webhook is unusable/);
});

test('the entrypoint requires the URI of the KVM host, and refuses other providers', t => {
	const forgotten = inImage(image.command, {CLOUD_PROVIDER: 'libvirt'});
	t.is(forgotten.status, 2);
	t.regex(forgotten.stderr, /^cloud-api-adaptor: LIBVIRT_URI is not set\./);
	for (const [argv, env] of [
		[[...image.command, 'aws'], {}],
		[image.command, {CLOUD_PROVIDER: 'azure'}],
	] as const) {
		const other = inImage(argv, {LIBVIRT_URI: 'qemu+ssh://root@192.168.122.1/system', CLUSTER_ID: 'x', ...env});
		t.is(other.status, 2);
		t.regex(other.stderr, /CLOUD_PROVIDER is "(?:aws|azure)"; expected "libvirt"/);
	}
});

/**
 * As the product's documentation has them, with names that are the image builder's and the existing adaptor's as well.
 */
const peerPodsSecret = {
	CLOUD_PROVIDER: 'libvirt',
	LIBVIRT_URI: `qemu+ssh://root@${subnet.host}/system`,
	REDHAT_OFFLINE_TOKEN: 'hunter2',
	LIBVIRT_POOL: 'overruled',
};
const peerPodsConfigMap = {
	CLOUD_PROVIDER: 'libvirt',
	DISABLECVM: 'true',
	LIBVIRT_POOL: names.pool,
	LIBVIRT_VOL_NAME: names.baseVolume,
	LIBVIRT_DIR_NAME: names.images,
	LIBVIRT_NET: names.network,
	PEERPODS_LIMIT_PER_NODE: '10',
	PROXY_TIMEOUT: '15m',
	VXLAN_PORT: '9000',
	LIBVIRT_CPU: '1',
	LIBVIRT_MEMORY: '256',
	LIBVIRT_ROOT_DISK_SIZE: '1',
	INITDATA: '',
	PODVM_DISTRO: 'rhel',
};
const ofDaemonSet = {
	NODE_NAME: 'worker-0.example.com',
	HTTP_PROXY: '',
	HTTPS_PROXY: '',
	NO_PROXY: '',
	TLS_MIN_VERSION: 'VersionTLS12',
	TLS_CIPHER_SUITES: 'TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256',
};
/** As kubelet makes them. Nobody listens there: without an API server pods get their VMs all the same. */
const ofCluster = {
	KUBERNETES_SERVICE_HOST: subnet.worker,
	KUBERNETES_SERVICE_PORT: '443',
	KUBERNETES_SERVICE_PORT_HTTPS: '443',
	KUBERNETES_PORT: `tcp://${subnet.worker}:443`,
	KUBERNETES_PORT_443_TCP: `tcp://${subnet.worker}:443`,
	KUBERNETES_PORT_443_TCP_PROTO: 'tcp',
	KUBERNETES_PORT_443_TCP_PORT: '443',
	KUBERNETES_PORT_443_TCP_ADDR: subnet.worker,
	HOSTNAME: 'worker-0',
};
const token = [
	'e30',
	Buffer.from(JSON.stringify({'kubernetes.io': {serviceaccount: {name: 'default', uid: '0b9a4b0e-uid'}}})).toString(
		'base64url',
	),
	's',
].join('.');

/**
 * The mounts: secrets as kubelet makes them (links into ..data, on a tmpfs that is read-only in the container), the
 * host's /run/peerpod and /run/netns as they are.
 */
const asTheDaemonSet = `${enter}
	token=$1; ca=$2; shift 2
	secret() {
		mkdir -p "$1/..2026_01"
		cp "$2/"* "$1/..2026_01/"
		chmod 600 "$1/..2026_01/"*
		ln -s ..2026_01 "$1/..data"
		for file in "$1/..data/"*; do ln -s "..data/$(basename "$file")" "$1/"; done
	}
	mkdir /run/key
	cp ${paths.key} ${paths.knownHosts} /run/key/
	mount -t tmpfs -o mode=550 tmpfs /root
	mkdir /root/.ssh
	mount -t tmpfs -o mode=1777 tmpfs /root/.ssh
	secret /root/.ssh /run/key
	mount -o remount,ro /root/.ssh
	mkdir -p /run/secrets/kubernetes.io/serviceaccount
	cd /run/secrets/kubernetes.io/serviceaccount
	printf %s "$token" >token
	printf %s "$ca" >ca.crt
	printf openshift-sandboxed-containers-operator >namespace
	cd /
	exec env --ignore-environment "$@"
`;

test('pods get their VMs with only the mounts and the environment of the DaemonSet of the operator', async t => {
	t.timeout(600_000);
	await using lab: Lab = await startLab({image: await buildGuestImage({}, signal), signal});
	const env = Object.entries({
		...baseEnv,
		...image.env,
		...peerPodsSecret,
		...ofCluster,
		...peerPodsSecret,
		...peerPodsConfigMap,
		...ofDaemonSet,
	}).map(([name, value]) => `${name}=${value}`);
	const ca = await makeCa('test cluster', {
		notBefore: new Date(Date.now() - 60_000),
		notAfter: new Date(Date.now() + 3_600_000),
	});
	// HostToContainer: namespaces of pods that come later are seen. A PID namespace: the daemon is the container's
	// first process.
	const container = lab.workerRun(
		[
			'unshare',
			'--mount',
			'--propagation',
			'slave',
			'--pid',
			'--fork',
			'--kill-child',
			'--mount-proc',
			'sh',
			'-euc',
			asTheDaemonSet,
			'sh',
			image.root,
			nodeDirectory,
			token,
			ca.cert,
			...env,
			...image.command,
		],
		{stdio: ['ignore', 'ignore', 'pipe']},
	);
	await using daemon = new Service('osc-caa-ds', container);
	try {
		t.like(JSON.parse(await daemon.line(/"msg":"ready"/, signal)), {
			path: hypervisorSocket,
			node: 'worker-0.example.com',
			pool: names.pool,
		});
		const [first] = descendants(container.pid ?? 0).filter(({argv}) =>
			argv.includes('/opt/cloud-api-adaptor/dist/main.js'),
		);
		t.is(first?.pidInside, 1);

		const empty = await lab.inventory();
		await using pod = await lab.podNamespace('hello');
		const shim = new Shim(lab.outside(hypervisorSocket));
		const id = newSandboxId();
		const agentSocket = await shim.createVm(
			{
				id,
				annotations: podAnnotations('hello', 'default'),
				networkNamespacePath: pod.netnsPath,
			},
			signal,
		);
		await shim.startVm(id, signal);
		t.deepEqual((await lab.inventory()).domains, [`podvm-hello-${id.slice(0, 8)}`]);
		await using client = await connect(lab.outside(agentSocket), signal);
		const agent = new AgentClient(client);
		await startSleeper(agent, id, 'c', signal);
		t.is((await runCommand(agent, 'c', ['uname', '-m'], signal)).stdout, 's390x\n');
		await shim.stopVm(id, signal);
		await daemon.line(/"msg":"sandbox removed"/, signal);
		t.deepEqual(await lab.inventory(), empty);

		// What kubelet does; unshare does not hand it on.
		process.kill(first?.pid ?? 0, 'SIGTERM');
		t.is(await daemon.ended, 0);
		t.notRegex(daemon.tail.join('\n'), /hunter2|"level":"(?:error|fatal)"/);
	} finally {
		if (!t.passed) {
			t.log(daemon.tail.join('\n'));
		}
	}
});

interface Descendant {
	readonly pid: number;
	readonly pidInside: number;
	readonly argv: readonly string[];
}

function descendants(pid: number): Descendant[] {
	const of = (name: string): string => readFileSync(`/proc/${pid}/${name}`, 'utf8');
	const own = {
		pid,
		pidInside: Number(/^NSpid:.*\s(\d+)$/mv.exec(of('status'))?.[1]),
		argv: of('cmdline').split('\0'),
	};
	return [
		own,
		...of(`task/${pid}/children`)
			.split(' ')
			.filter(child => child !== '')
			.flatMap(child => descendants(Number(child))),
	];
}
