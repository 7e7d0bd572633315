import test from 'ava';
import {versionText} from '../../src/cli/version.ts';
import {apiVersion} from '../../src/api/contract.ts';
import {contractVersion} from '../../src/relay-process/contract.ts';

test('version tells the build, Node.js and the versions of both contracts, one a line', t => {
	t.is(
		versionText({version: '1.2.3', gitHead: '0f1e2d'}, 'v24.21.0'),
		`cloud-api-adaptor 1.2.3\ncommit 0f1e2d\nNode.js v24.21.0\nkata remote hypervisor API ${apiVersion} (proto/hypervisor.proto)\n` +
			`relay process contract ${contractVersion} (proto/relay.proto)\n`,
	);
	t.regex(versionText({version: '1.2.3'}, 'v24.21.0'), /^commit unknown$/mv);
});
