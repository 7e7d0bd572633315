/** What the daemon may do on its node: exactly what the manifests ask for is enough, and each part of it is needed. */
import {readFile} from 'node:fs/promises';
import test, {type ExecutionContext} from 'ava';
import {parseAllDocuments} from 'yaml';
import {connect} from '../../src/ttrpc/client.ts';
import {AgentClient} from '../lab/agent-client.ts';
import {startDaemon, hypervisorSocket} from '../lab/daemon.ts';
import {buildGuestImage} from '../lab/image.ts';
import {startLab, type Lab} from '../lab/lab.ts';
import type {Service} from '../lab/service.ts';
import {newSandboxId, podAnnotations, Shim} from '../lab/shim.ts';

const {signal} = new AbortController();
const stack = new AsyncDisposableStack();
let lab: Lab;
let shim: Shim;
/** As libcap names them, from the DaemonSet. */
let capabilities: readonly string[];

test.before(async t => {
	t.timeout(600_000);
	lab = stack.use(await startLab({image: await buildGuestImage({}, signal), signal}));
	shim = new Shim(lab.outside(hypervisorSocket));
	const documents = parseAllDocuments(
		await readFile(new URL('../../deploy/base/daemon.yaml', import.meta.url), 'utf8'),
	);
	const daemonSet = documents
		.map(
			document =>
				document.toJS() as {
					kind?: string;
					spec?: {
						template: {
							spec: {
								containers: Array<{securityContext: {capabilities: {add: string[]; drop: string[]}}}>;
							};
						};
					};
				},
		)
		.find(({kind}) => kind === 'DaemonSet');
	const asked = daemonSet?.spec?.template.spec.containers[0]?.securityContext.capabilities;
	t.deepEqual(asked?.drop, ['ALL']);
	capabilities = (asked?.add ?? []).map(name => name.toLowerCase());
});
test.after.always(async () => stack.disposeAsync());

/**
 * With these capabilities only, and nothing of the file system writable but what is mounted into it: here /run and
 * /dev/shm.
 */
function confined(kept: readonly string[]): readonly string[] {
	return [
		'unshare',
		'--mount',
		'--propagation',
		'slave',
		'--',
		'sh',
		'-euc',
		'mount -o remount,ro,bind /; exec "$@"',
		'sh',
		'setpriv',
		'--bounding-set',
		['-all', ...kept.map(name => `+${name}`)].join(','),
		'--inh-caps',
		'-all',
		'--',
	];
}

async function withDaemon(
	t: ExecutionContext,
	kept: readonly string[],
	work: (daemon: Service) => Promise<void>,
): Promise<void> {
	await using daemon = await startDaemon(lab, {}, signal, confined(kept));
	t.teardown(() => t.passed || t.log(daemon.tail.slice(-40).join('\n')));
	await work(daemon);
}

test.serial(
	'with the capabilities of the manifest and a read-only root a pod starts, is reached and is removed',
	async t => {
		t.timeout(600_000);
		await withDaemon(t, capabilities, async () => {
			await using pod = await lab.podNamespace('confined');
			const id = newSandboxId();
			const agentSocket = await shim.createVm(
				{id, annotations: podAnnotations('confined', 'default'), networkNamespacePath: pod.netnsPath},
				signal,
			);
			await shim.startVm(id, signal);
			const agent = await connect(lab.outside(agentSocket), signal);
			t.is((await new AgentClient(agent).call('Health/Check', {}, signal)).status, 'SERVING');
			await agent[Symbol.asyncDispose]();
			await shim.stopVm(id, signal);
		});
		const {domains, volumes, tunnels, sockets} = await lab.inventory();
		t.deepEqual({domains, volumes, tunnels, sockets}, {domains: [], volumes: [], tunnels: [], sockets: []});
	},
);

for (const missing of ['net_admin', 'sys_admin']) {
	test.serial(`without ${missing}, a pod fails without leftovers, and the error says what is missing`, async t => {
		t.timeout(600_000);
		t.true(capabilities.includes(missing));
		const kept = capabilities.filter(name => name !== missing);
		const error = await t.throwsAsync(
			withDaemon(t, kept, async () => {
				await using pod = await lab.podNamespace(`no-${missing.replace('_', '-')}`);
				await shim.createVm(
					{
						id: newSandboxId(),
						annotations: podAnnotations('confined', 'default'),
						networkNamespacePath: pod.netnsPath,
					},
					signal,
				);
			}),
		);
		t.regex(error.message, /NET_ADMIN and SYS_ADMIN/);
		const {domains, tunnels} = await lab.inventory();
		t.deepEqual({domains, tunnels}, {domains: [], tunnels: []});
	});
}
