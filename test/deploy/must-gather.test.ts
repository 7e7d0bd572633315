/** The must-gather script, with a cluster and a KVM host that are programs on the path and full of secrets. */
import {execFile} from 'node:child_process';
import {chmod, mkdir, readFile, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import {promisify} from 'node:util';
import test, {type ExecutionContext} from 'ava';
import {directoryOf} from '../support/directory.ts';
import {deployDirectory} from './manifests.ts';

const execute = promisify(execFile);
const script = join(deployDirectory, 'must-gather/must-gather.sh');

/** None of these may be in the archive. */
const planted = [
	'planted-password-1',
	'planted-token-2',
	'planted-activation-3',
	'planted-uri-4',
	'planted-environment-5',
	'planted-applied-6',
	'cGxhbnRlZC1hdXRoLTc=',
	'planted-bearer-8',
	'eyJhbGciOiJub25lIn0.eyJwbGFudGVkIjo5fQ.c2lnbmF0dXJlOQ',
	'cGxhbnRlZC1rZXktMTA',
	'cGxhbnRlZC1rZXktMTE',
	'planted-initdata-12',
	'planted-once-escaped-13',
	'planted-assignment-14',
	'planted-escaped-15',
	'planted-stderr-16',
];

const configMaps = {
	items: [
		{
			metadata: {
				name: 'peer-pods-cm',
				annotations: {
					'kubectl.kubernetes.io/last-applied-configuration':
						'{"data":{"X":"planted-applied-6 \\"quoted\\""}}',
				},
			},
			data: {
				LIBVIRT_URI: 'qemu+ssh://root:planted-uri-4@kvm.example.com/system',
				LIBVIRT_POOL: 'default',
				ACTIVATION_KEY: 'planted-activation-3',
				INITDATA: 'planted-initdata-12',
				'auth.json': '{"auths":{"registry.example.com":{"auth":"cGxhbnRlZC1hdXRoLTc="}}}',
				file: '{"token":"planted-once-escaped-13","kept":"kept-0"}',
				notes: '{\\"password\\":\\"planted-escaped-15\\",\\"kept\\":\\"kept-1\\"}',
			},
		},
	],
};
const daemonSets = {
	items: [
		{
			spec: {
				containers: [
					{
						env: [
							{name: 'LIBVIRT_POOL', value: 'kept-2'},
							{name: 'REDHAT_OFFLINE_TOKEN', value: 'planted-environment-5'},
							{name: 'VXLAN_PORT', value: 'kept-3'},
						],
						envFrom: [{secretRef: {name: 'peer-pods-secret'}}],
						volumes: [{secret: {secretName: 'ssh-key-secret'}}],
					},
				],
			},
		},
	],
};
const log = [
	'{"level":"info","msg":"ready","relay":"relay process"}',
	'{"level":"warn","password":"planted-password-1","msg":"kept-4"}',
	'{"level":"warn","err":{"message":"token=planted-token-2, Authorization: Bearer planted-bearer-8"},"msg":"kept-5"}',
	'a legacy token eyJhbGciOiJub25lIn0.eyJwbGFudGVkIjo5fQ.c2lnbmF0dXJlOQ in a line',
	'-----BEGIN EC PRIVATE KEY-----',
	'cGxhbnRlZC1rZXktMTA',
	'-----END EC PRIVATE KEY-----',
	String.raw`{"key":"-----BEGIN PRIVATE KEY-----\ncGxhbnRlZC1rZXktMTE\n-----END PRIVATE KEY-----\n","msg":"kept-6"}`,
	'REGISTRY_PASSWORD: planted-assignment-14 kept-7',
	'the last line',
].join('\n');
const check = JSON.stringify({node: 'worker-0', status: 'failure', checks: [{name: 'ssh', text: 'kept-8'}]});

/** A cluster of one node; writes its arguments to a file. Refuses to know what `image list` and `pods` are. */
const oc = `#!/bin/sh
echo "$*" >>"$FAKES/calls"
case "$*" in
*secret*) echo 'it reads a secret' >&2; exit 99 ;;
'get pods -A --no-headers'*)
	echo 'default hello kata-remote worker-0 Running 10.0.0.2 t <none> 2 4096 podvm.qcow2'
	echo 'default plain <none> worker-0 Running 10.0.0.3 t <none> <none> <none> <none>' ;;
'get pods -n ns -l name=osc-caa-ds -o name') echo pod/osc-caa-ds-x ;;
'get pods -n ns -o name') printf 'pod/osc-caa-ds-x\\npod/peer-pods-webhook-y\\n' ;;
'get pod -n default hello -o jsonpath={.status}') echo '{"phase":"Running"}' ;;
'get events -n default --field-selector involvedObject.name=hello') echo 'Warning PodVMEnded kept-9' ;;
'get configmaps -n ns -o json') cat "$FAKES/configmaps" ;;
'get daemonsets.apps -n ns -o json') cat "$FAKES/daemonsets" ;;
'logs -n ns osc-caa-ds-x --all-containers --previous'*) echo 'Error: password=planted-stderr-16 previous terminated container not found' >&2; exit 1 ;;
'logs -n ns osc-caa-ds-x'*) cat "$FAKES/log" ;;
'exec -n ns osc-caa-ds-x -- cloud-api-adaptor check -json') cat "$FAKES/check"; exit 1 ;;
'exec -n ns osc-caa-ds-x -- cloud-api-adaptor version') echo 'cloud-api-adaptor 0.1.0' ;;
exec*) echo 'There is no command' >&2; exit 2 ;;
*) echo "answer of $2" ;;
esac
`;
const ssh = `#!/bin/sh
[ "$#" -eq 6 ] && [ "$5" = root@kvm ] || exit 98
exec sh -c "$6"
`;
const virsh = `#!/bin/sh
shift 2
case "$*" in
'list --all --name') printf 'podvm-hello-1234abcd\\nsomething-else\\n' ;;
'dumpxml podvm-hello-1234abcd') echo '<domain><name>podvm-hello-1234abcd</name></domain>' ;;
dumpxml*) echo 'another domain was asked for' ;;
*--name*) echo default ;;
*) echo "virsh $*" ;;
esac
`;

interface Gathered {
	readonly stderr: string;
	readonly calls: readonly string[];
	/** Content by path in the archive. */
	readonly files: ReadonlyMap<string, string>;
}

async function gather(t: ExecutionContext, env: Readonly<Record<string, string>>, program = oc): Promise<Gathered> {
	const directory = await directoryOf(t);
	await mkdir(`${directory}/bin`);
	for (const [name, content] of Object.entries({'bin/oc': program, 'bin/ssh': ssh, 'bin/virsh': virsh})) {
		await writeFile(`${directory}/${name}`, content);
		await chmod(`${directory}/${name}`, 0o755);
	}

	await writeFile(`${directory}/calls`, '');
	await writeFile(`${directory}/configmaps`, JSON.stringify(configMaps, undefined, 4));
	await writeFile(`${directory}/daemonsets`, JSON.stringify(daemonSets, undefined, 4));
	await writeFile(`${directory}/log`, log);
	await writeFile(`${directory}/check`, check);
	const archive = `${directory}/out.tar`;
	const {stderr} = await execute('sh', [script, '-n', 'ns', '-o', archive], {
		cwd: directory,
		env: {PATH: `${directory}/bin:/usr/bin:/bin`, FAKES: directory, TMPDIR: directory, ...env},
	});
	const {stdout: names} = await execute('tar', ['-tf', archive]);
	const files = new Map<string, string>();
	for (const name of names.split('\n').filter(each => each !== '' && !each.endsWith('/'))) {
		const {stdout} = await execute('tar', ['-xOf', archive, name]);
		files.set(name.slice(name.indexOf('/') + 1), stdout);
	}

	return {stderr, calls: (await readFile(`${directory}/calls`, 'utf8')).split('\n'), files};
}

test('must-gather collects logs, objects, checks and the domains of the KVM host', async t => {
	const {files, stderr} = await gather(t, {KVM_HOST: 'root@kvm'});
	const content = (name: string): string => files.get(name) ?? `no ${name} in ${[...files.keys()].join(' ')}`;
	t.regex(content('logs/osc-caa-ds-x.log'), /"msg":"ready"[^]*the last line\n$/v);
	t.is(content('nodes/osc-caa-ds-x/check--json.txt'), `${check}\n`);
	t.is(content('nodes/osc-caa-ds-x/version.txt'), 'cloud-api-adaptor 0.1.0\n');
	t.true(content('objects/configmaps.json').includes('"LIBVIRT_POOL": "default"'));
	t.is(content('peer-pods/default/hello.events.txt'), 'Warning PodVMEnded kept-9\n');
	t.is(content('peer-pods/default/hello.status.json'), '{"phase":"Running"}\n');
	t.false([...files.keys()].some(name => name.includes('plain')));
	t.is(content('kvm-host/domains.xml'), '<domain><name>podvm-hello-1234abcd</name></domain>\n');
	t.true(content('kvm-host/pools.txt').includes('virsh vol-list default --details'));
	// What could not be had is named, and nothing else.
	t.deepEqual(
		content('failed.txt')
			.split('\n')
			.filter(line => /^\S/v.test(line))
			.map(line => line.split(':')[0]),
		[
			'logs/osc-caa-ds-x.previous.log',
			'nodes/osc-caa-ds-x/check--json.txt',
			'nodes/osc-caa-ds-x/pods--json.txt',
			'nodes/osc-caa-ds-x/image-list--json.txt',
		],
	);
	t.regex(stderr, /out\.tar[^]*see failed\.txt/v);
});

test('must-gather reads no Secret, and no planted secret is in its archive', async t => {
	const {files, calls} = await gather(t, {KVM_HOST: 'local'});
	t.true(calls.length > 20);
	t.deepEqual(
		calls.filter(call => /secret|describe/iv.test(call)),
		[],
	);
	const all = [...files.values()].join('\n');
	t.deepEqual(
		planted.filter(secret => all.includes(secret)),
		[],
	);
	for (let kept = 0; kept <= 9; kept++) {
		t.true(all.includes(`kept-${kept}`), `kept-${kept} is gone:\n${all}`);
	}

	// Names of secrets are none.
	t.true(all.includes('"secretName": "ssh-key-secret"'));
	t.true(all.includes('"name": "peer-pods-secret"'));
	t.true(all.includes('qemu+ssh://[redacted]@kvm.example.com/system'));
	t.true(files.get('logs/osc-caa-ds-x.log')?.includes('"msg":"kept-6"'));
});

test('must-gather writes an archive also when the cluster answers nothing', async t => {
	const {files} = await gather(t, {}, '#!/bin/sh\necho "connection refused" >&2\nexit 1\n');
	t.regex(files.get('failed.txt') ?? '', /objects\/pods\.json: exit status 1[^]*connection refused[^]*KVM_HOST/v);
});

test('must-gather says how it is used, and what it lacks', async t => {
	const usage = await t.throwsAsync(execute('sh', [script, '-x']), {code: 2} as never);
	t.regex((usage as unknown as {stdout: string}).stdout, /KVM_HOST/v);
	const without = await t.throwsAsync(execute('/bin/sh', [script], {env: {PATH: '/nonexistent'}}).catch(withStderr));
	t.regex(without.message, /neither oc nor kubectl/v);
});

function withStderr(error: unknown): never {
	throw new Error((error as {stderr: string}).stderr);
}
